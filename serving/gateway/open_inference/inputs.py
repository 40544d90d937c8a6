"""From tensors that were sent to what a model runs.

Every model takes the tensors of its network, as its metadata lists them. A model that reads texts takes those instead:
`text` [B] of an intent or tagging model, `query` [1] and `text` [D] of a ranker. A ranker of features takes one tensor
a feature, by name. A trailing axis of 1 may stand behind any of these.
Legend: B rows, D candidates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.batch import Encoded
from models.errors import InputError, TooLargeError
from models.manifest import NgramText, TensorSpec
from models.model import Model
from models.ranking import PAIRS_A_BLOCK, RankingModel, RankRequest, Table, check_attended
from serving.gateway.config import LimitsConfig
from serving.gateway.open_inference.tensors import DATATYPES, Tensor
from serving.gateway.rules import check_number, check_texts, float32
from serving.runtime.protocol import ServedModel

TEXT, QUERY = "text", "query"
_MASK = "mask"
_BLOCK = 16
"""Texts of one request that are encoded before others get their turn, as in `serving.gateway.understand`."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is to run: each of `rows` is queued by itself.

    candidates: a list that is still to be encoded, in place of rows.
    """

    rows: Sequence[Encoded] = ()
    candidates: RankRequest | None = None


async def read(tensors: Mapping[str, Tensor], served: ServedModel, model: Model, limits: LimitsConfig) -> Asked:
    """Read a request's tensors; InputError names the one at fault, TooLargeError where there is too much."""
    specs = served.bundle.manifest.signature.inputs
    if any(spec.name in tensors for spec in specs):
        return Asked(_network(tensors, served, model, limits))
    if isinstance(model, RankingModel):
        return Asked(candidates=_candidates(tensors, served, limits))
    if set(tensors) != {TEXT}:
        raise InputError(
            f"inputs must be {_names(specs)}, or {TEXT} alone, for {served.ref}, got {_shapes(tensors)}; send those",
            field="inputs",
        )
    texts = _column(TEXT, tensors[TEXT], is_text=True)
    _check_rows(len(texts), limits)
    rows = []
    for place, text in enumerate(texts):
        rows.append(_encoded(text, model, f"{TEXT}[{place}]", limits))
        if place % _BLOCK == _BLOCK - 1:
            await asyncio.sleep(0)
    return Asked(rows)


def _encoded(text: str, model: Model, field: str, limits: LimitsConfig) -> Encoded:
    assert not isinstance(model, RankingModel)
    if len(text) > limits.max_query_chars:
        raise TooLargeError(
            f"a text must have at most {limits.max_query_chars} characters, got {len(text)}; shorten it", field=field
        )
    try:
        encoded = model.encode(text)
    except InputError as error:
        error.field = field
        raise
    if encoded.n_windows > 1:
        raise InputError(
            f"{field} must fit into one window of this model, it takes {encoded.n_windows}, which only POST "
            "/v1/understand reads; ask there",
            field=field,
        )
    return encoded


def _candidates(tensors: Mapping[str, Tensor], served: ServedModel, limits: LimitsConfig) -> RankRequest:
    """One list: a tensor a feature, those that are not sent are missing; texts, and their query, where it reads any."""
    reads_texts = served.bundle.manifest.reads_texts
    words = {name: tensors[name] for name in (QUERY, TEXT) if name in tensors and reads_texts}
    features = {name: tensor for name, tensor in tensors.items() if name not in words}
    columns = [float32(name, _column(name, tensor)) for name, tensor in features.items()]
    texts = tuple(_column(TEXT, words[TEXT], is_text=True)) if TEXT in words else None
    query = _column(QUERY, words[QUERY], is_text=True).tolist() if QUERY in words else [""]
    if len(query) != 1:
        raise InputError(f"{QUERY} must be one text, [1], got {len(query)}; send several requests", field=QUERY)
    lengths = {len(column) for column in columns} | ({len(texts)} if texts is not None else set())
    if len(lengths) != 1:
        specs = served.bundle.manifest.signature.inputs
        rest = f"{QUERY} [1] and {TEXT} [candidates]" if reads_texts else "one tensor a feature, all [candidates]"
        raise InputError(
            f"inputs must be {_names(specs)}, or {rest}, for {served.ref}, got {_shapes(tensors)}; send those",
            field="inputs",
        )
    (n,) = lengths
    check_number(n, limits)
    check_texts(query[0], texts, n, limits)
    matrix = np.stack(columns).T if columns else np.empty((n, 0), np.float32)
    return RankRequest(ids=("",) * n, text=query[0], texts=texts, features=Table(tuple(features), matrix))


def _network(
    tensors: Mapping[str, Tensor], served: ServedModel, model: Model, limits: LimitsConfig
) -> Sequence[Encoded]:
    """The network's own inputs, whole. A mask over candidates may be left out: all of them count then."""
    manifest = served.bundle.manifest
    signature = manifest.signature
    given = dict(tensors)
    if _MASK in {spec.name for spec in signature.inputs} and "features" in given:
        given.setdefault(_MASK, np.ones(given["features"].shape[:2], np.float32))
    expected = {spec.name for spec in signature.inputs}
    if set(given) != expected:
        wrong = min(set(given) ^ expected)
        rule = "is missing; add it" if wrong in expected else "is none of them; leave it out"
        raise InputError(f"inputs must be {_names(signature.inputs)} for {served.ref}, {wrong!r} {rule}", field=wrong)
    arrays = {spec.name: _as_declared(given[spec.name], spec, served, model) for spec in signature.inputs}
    if len({array.shape[:2] for array in arrays.values()}) != 1:
        raise InputError(f"inputs must be of one size for {served.ref}, got {_shapes(given)}; pad them", field="inputs")
    first = next(iter(arrays.values()))
    if manifest.family != "ranking":
        _check_rows(len(first), limits)
    elif signature.layout == "concat":
        check_number(len(first), limits)
    else:
        check_number(first.shape[0] * first.shape[1], limits)
        check_attended(first.shape[1])
    if len(first) and first.ndim > 1:
        _check_lengths(arrays, first.shape[1], served)
    if signature.layout == "concat":
        n = len(first) if manifest.pair_text is None else PAIRS_A_BLOCK
        return [
            Encoded({name: array[start : start + n] for name, array in arrays.items()})
            for start in range(0, len(first), n or 1)
        ]
    return [Encoded({name: array[row] for name, array in arrays.items()}) for row in range(len(first))]


def _check_lengths(arrays: Mapping[str, Tensor], n: int, served: ServedModel) -> None:
    """Expect rows of a length that the network reads, and a mask that says where each one's tokens end.

    Networks compute real tokens alone (docs/decisions/0014): another mask would fail, or move, a whole batch.
    """
    manifest = served.bundle.manifest
    settings = manifest.pair_text or manifest.text
    most = None if settings is None or isinstance(settings, NgramText) else settings.max_tokens
    if n < 1 or (most is not None and n > most):
        rule = "at least 1" if most is None else f"1 to {most}"
        raise InputError(f"a row must have a length of {rule} for {served.ref}, got {n}; send so", field="inputs")
    mask = arrays.get("attention_mask")
    if mask is None:
        return
    is_first, is_falling = (mask[:, 0] == 1).all(), (mask[:, 1:] <= mask[:, :-1]).all()
    if not is_first or not is_falling or int(mask.min()) < 0:
        raise InputError(
            "attention_mask must be 1 at each of a row's tokens, of which there is one or more, and 0 behind them; "
            "pad on the right",
            field="attention_mask",
        )


def _as_declared(tensor: Tensor, spec: TensorSpec, served: ServedModel, model: Model) -> Tensor:
    """A tensor as the network reads it: its type, its axes, and numbers of tokens that it knows."""
    shape = (-1, *(spec.shape[1:] or (1,)))
    if tensor.ndim != len(shape) or any(wanted not in (-1, n) for wanted, n in zip(shape, tensor.shape, strict=True)):
        raise InputError(
            f"{spec.name} must have the shape {list(shape)} (-1: any) for {served.ref}, got {list(tensor.shape)}; "
            "send every axis",
            field=spec.name,
        )
    tensor = tensor.reshape(tensor.shape[: len(spec.shape)])
    kinds = "iu" if spec.dtype == "int64" else "iuf"
    if tensor.dtype.kind not in kinds:
        raise InputError(
            f"{spec.name} must be of the datatype {DATATYPES[spec.dtype]} for {served.ref}; send that", field=spec.name
        )
    if spec.dtype == "float32":
        return float32(spec.name, tensor)
    least, most = (0, model.n_ids - 1) if spec.name.endswith("_ids") else (-(2**63), 2**63 - 1)
    low, high = (int(tensor.min()), int(tensor.max())) if tensor.size else (0, 0)
    if low < least or high > most:
        raise InputError(
            f"{spec.name} must be from {least} to {most} for {served.ref}, got {low if low < least else high}; "
            "use the model's own tokenizer",
            field=spec.name,
        )
    return tensor.astype(np.int64)


def _column(name: str, tensor: Tensor, *, is_text: bool = False) -> Tensor:
    """A tensor [N] or [N, 1] as [N]."""
    if tensor.ndim not in (1, 2) or tensor.size != tensor.shape[0]:
        raise InputError(f"{name} must have the shape [N] or [N, 1], got {list(tensor.shape)}; send so", field=name)
    if (tensor.dtype.kind == "O") is not is_text:
        raise InputError(f"{name} must be {'texts (BYTES)' if is_text else 'numbers'}; send so", field=name)
    return tensor.reshape(-1)


def _check_rows(n: int, limits: LimitsConfig) -> None:
    if n > limits.max_queries:
        raise TooLargeError(
            f"a request must have at most {limits.max_queries} rows, got {n}; send several requests", field="inputs"
        )


def _names(specs: Sequence[TensorSpec]) -> str:
    return " and ".join(spec.name for spec in specs)


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name[:40]} {list(tensor.shape)}" for name, tensor in tensors.items()) or "none"
