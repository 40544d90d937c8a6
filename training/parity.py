"""Whether an export answers as the model that it came from: a difference stops the line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays, Encoded
from models.errors import ParityError
from models.manifest import Contents
from models.metrics import served_order
from models.model import Model
from models.ranking import RankingModel
from models.tagging import TaggingModel
from registry.evaluation import Parity
from registry.golden import largest_difference
from training.evaluate import Answered

_PADDED_OUTPUT = "tag_logits"


def compare(
    model: Model,
    contents: Contents,
    requests: Sequence[Any],
    expected: Sequence[Arrays],
    answered: Sequence[Answered],
    *,
    tolerance: float,
) -> Parity:
    """Compare the outputs that `answered` holds with `expected` ones of the same requests.

    A decision is changed where the label, a tag, or the order of a list differs; documents whose expected scores are
    within `tolerance` of each other may change places. Outputs of tokens count up to the text's own length only.
    ParityError where an output has another shape, or is NaN or infinite on one side only.
    """
    differences = [0.0]
    n_changed = 0
    for request, wanted, found in zip(requests, expected, answered, strict=True):
        wanted, outputs = without_padding(wanted, found.encoded), without_padding(found.outputs, found.encoded)
        differences += [
            _difference(spec.name, wanted[spec.name], outputs[spec.name]) for spec in contents.signature.outputs
        ]
        if isinstance(model, RankingModel):
            n_changed += not same_order(wanted["score"], outputs["score"], tolerance)
        else:
            n_changed += _decision(model, request, found, wanted) != _decision(model, request, found, outputs)
    largest = max(differences)
    return Parity(largest_difference=largest, n_changed_decisions=n_changed, n_examples=len(requests))


def same_order(expected_D: NDArray[np.generic], found_D: NDArray[np.generic], tolerance: float) -> bool:
    """Whether the order of the found scores is one of the expected scores, give or take `tolerance`.

    True where no document is served before one whose expected score is higher by more than `tolerance`.
    """
    expected = np.asarray(expected_D, dtype=np.float64).reshape(-1)
    served = expected[served_order(np.asarray(found_D, dtype=np.float64).reshape(-1))]
    best_to_come = np.maximum.accumulate(served[::-1])[::-1]
    return bool(np.all(served >= best_to_come - tolerance))


def without_padding(outputs: Arrays, encoded: Encoded) -> Arrays:
    """One request's outputs, of its own tokens alone: cut to its length, and 0 behind a window shorter than others."""
    given: dict[str, NDArray[np.generic]] = {}
    for name, array in outputs.items():
        given[name] = array[..., : encoded.length, :] if name == _PADDED_OUTPUT else array
        if name == _PADDED_OUTPUT and encoded.n_windows > 1:
            is_real_WT1 = encoded.arrays["attention_mask"].astype(bool)[..., np.newaxis]
            given[name] = np.where(is_real_WT1, given[name], 0)
    return given


def _difference(name: str, wanted: NDArray[np.generic], found: NDArray[np.generic]) -> float:
    if wanted.size != found.size:
        raise ParityError(
            f"{name} must have the shape {wanted.shape} of its source, got {found.shape}; export it again"
        )
    difference = largest_difference(wanted, found)
    if not math.isfinite(difference):
        raise ParityError(f"{name} must be finite where its source is, and only there; train or export it again")
    return difference


def _decision(model: Model, request: Any, found: Answered, outputs: Arrays) -> Any:
    reading = model.decode(request, found.encoded, outputs)
    label = getattr(getattr(reading, "intent", None), "label", None)
    tags = model.tags([found.encoded], [outputs])[0] if isinstance(model, TaggingModel) else None
    return label, tags
