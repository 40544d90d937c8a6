"""From what a model answered to the tensors of a response.

Legend: B rows, D candidates, T tokens, C classes, N of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from models.batch import Arrays, Encoded
from models.errors import InputError
from models.manifest import TensorSpec
from serving.gateway.open_inference.tensors import Tensor
from serving.runtime.protocol import ServedModel

_INTENT = "intent_logits"
"""Whose classes have names: the labels of the manifest."""


def chosen(names: Sequence[str] | None, served: ServedModel) -> list[TensorSpec]:
    """Give the outputs that are asked for, in the order asked, all where none is named; InputError for an unknown."""
    known = {spec.name: spec for spec in served.bundle.manifest.signature.outputs}
    for place, name in enumerate(names or ()):
        if name not in known:
            raise InputError(
                f"an output must be one of {', '.join(known)} for {served.ref}, got {name[:40]!r}; ask for those",
                field=f"outputs[{place}].name",
            )
    return [known[name] for name in names or known]


def joined(
    rows: Sequence[Encoded],
    answers: Sequence[Arrays],
    served: ServedModel,
    specs: Sequence[TensorSpec],
    *,
    is_list: bool,
) -> dict[str, Tensor]:
    """Join the rows' outputs: [B, ...] of texts, [D, 1] of candidates; a number a row stands alone on its axis.

    Rows of several lengths are padded with 0. is_list: the answer of one list is its candidates, not a row.
    """
    is_concat = served.bundle.manifest.signature.layout == "concat" or is_list
    found: dict[str, Tensor] = {}
    for spec in specs:
        blocks = [_own(spec, row, answer) for row, answer in zip(rows, answers, strict=True)]
        array = np.concatenate(blocks) if is_concat and blocks else _stacked(blocks, spec)
        found[spec.name] = array.reshape(-1, 1) if array.ndim == 1 else array
    return found


def classified(name: str, tensor: Tensor, n: int, served: ServedModel) -> Tensor:
    """The `n` highest values of each row as texts `value:index`, with `:label` behind where an intent is told.

    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
    """
    labels = served.bundle.manifest.labels if name == _INTENT else None
    values_BC = tensor.reshape(len(tensor), math.prod(tensor.shape[1:]))
    best_BN = np.argsort(-values_BC, axis=1, kind="stable")[:, :n]
    found: Tensor = np.empty(best_BN.shape, object)
    for row, places in enumerate(best_BN.tolist()):
        for rank, place in enumerate(places):
            label = "" if labels is None else f":{labels[place]}"
            found[row, rank] = f"{values_BC[row, place]:f}:{place}{label}"
    return found


def _own(spec: TensorSpec, row: Encoded, answer: Arrays) -> Tensor:
    """What was said of this row's own tokens: beside a longer one in its batch a row was padded."""
    array = np.asarray(answer[spec.name], spec.dtype)
    return array[: row.length] if len(spec.shape) == 3 else array


def _stacked(blocks: Sequence[Tensor], spec: TensorSpec) -> Tensor:
    if len({block.shape for block in blocks}) == 1:
        return np.stack(blocks)
    longest = np.max([block.shape for block in blocks], axis=0) if blocks else np.maximum(spec.shape[1:], 0)
    array: Tensor = np.zeros((len(blocks), *longest.astype(int)), spec.dtype)
    for place, block in enumerate(blocks):
        place_of = (slice(place, place + 1), *(slice(size) for size in block.shape))
        array[place_of] = block
    return array
