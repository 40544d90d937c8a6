"""`golden.json`: requests with the exact tensors in and out, which every runtime must repeat before it serves.

Every row is run alone, a batch of one. Missing (NaN) is `null`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays, Encoded, collate, split
from models.errors import BundleError, ParityError
from models.manifest import Signature, TensorSpec
from models.ranking import RankRequest
from registry.bundle import Bundle

FILE = "golden.json"

Request = str | RankRequest
Run = Callable[[Arrays], Arrays]
"""Runs one collated batch: input name -> array, giving output name -> array."""


@dataclass(frozen=True, slots=True)
class GoldenRow:
    """One request, its encoded inputs, and what each variant answered to it alone (variant -> output name -> array)."""

    request: Request
    encoded: Encoded
    outputs: Mapping[str, Arrays]


def write(
    directory: Path, signature: Signature, rows: Iterable[tuple[Request, Encoded]], variants: Mapping[str, Run]
) -> None:
    """Run every row alone through every variant (`float32`, `int8`) and write golden.json into a bundle's draft."""
    golden = [
        {
            "request": _request_to_json(request),
            "inputs": _to_json(encoded.arrays),
            "outputs": {variant: _to_json(_alone(encoded, signature, run)) for variant, run in variants.items()},
        }
        for request, encoded in rows
    ]
    text = json.dumps({"rows": golden}, ensure_ascii=False, allow_nan=False)
    (directory / FILE).write_text(text + "\n", encoding="utf-8")


def read(bundle: Bundle) -> tuple[GoldenRow, ...]:
    """Read a bundle's golden rows; BundleError where there are none or they cannot be understood."""
    try:
        raw = json.loads((bundle.path / FILE).read_text(encoding="utf-8"))
        rows = tuple(_row(row, bundle.manifest.signature) for row in raw["rows"])
    except FileNotFoundError as error:
        raise BundleError(f"{bundle.path} must hold {FILE} to be proved before it serves; train again") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BundleError(
            f"{bundle.path / FILE} must hold rows with request, inputs and outputs, got: {error!r}"
        ) from error
    if not rows:
        raise BundleError(f"{bundle.path / FILE} must hold at least one row, it has none; train again")
    return rows


def check(bundle: Bundle, variant: str, run: Run, tolerance: float | None = None) -> None:
    """Prove that `run` answers every golden row as `variant` did, no output further off than the manifest tolerates.

    tolerance: another one than the variant's, where it runs in another precision. ParityError names the row, the output
    and the largest difference.
    """
    tolerance = bundle.manifest.tolerance_of(variant) if tolerance is None else tolerance
    for index, row in enumerate(read(bundle)):
        where = f"golden row {index} of {bundle.path}"
        if variant not in row.outputs:
            raise BundleError(f"{where} must have outputs of the variant {variant}, it has {sorted(row.outputs)}")
        found = _alone(row.encoded, bundle.manifest.signature, run)
        _compare(where, "output", row.outputs[variant], found, tolerance)


def check_encoding(bundle: Bundle, encode: Callable[[Any], Encoded]) -> None:
    """Prove that `encode` still turns every golden request into the same model inputs; ParityError otherwise."""
    for index, row in enumerate(read(bundle)):
        where = f"golden row {index} of {bundle.path}"
        _compare(where, "input", row.encoded.arrays, encode(row.request).arrays, bundle.manifest.tolerance)


def _alone(encoded: Encoded, signature: Signature, run: Run) -> Arrays:
    return split(run(collate([encoded], signature)), [encoded], signature)[0]


def _compare(where: str, kind: str, expected: Arrays, found: Arrays, tolerance: float) -> None:
    for name, wanted in expected.items():
        if name not in found:
            raise ParityError(f"{where} must have the {kind} {name}, got {sorted(found)}; export the model again")
        if found[name].shape != wanted.shape:
            raise ParityError(
                f"{where}: {kind} {name} must have shape {wanted.shape}, got {found[name].shape}; "
                "export the model again"
            )
        difference = largest_difference(wanted, found[name])
        if not difference <= tolerance:
            raise ParityError(
                f"{where}: {kind} {name} must be equal to {tolerance:g}, its largest difference is {difference:.3g}; "
                "do not serve this bundle with this runtime"
            )


def largest_difference(expected: NDArray[np.generic], found: NDArray[np.generic]) -> float:
    """Largest absolute difference of two arrays of one shape; equal infinities and NaN on both sides differ by 0."""
    a, b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
    differs = ~((a == b) | (np.isnan(a) & np.isnan(b)))
    return float(np.max(np.abs(a[differs] - b[differs]), initial=0.0))


def _row(raw: Mapping[str, Any], signature: Signature) -> GoldenRow:
    inputs = _from_json(raw["inputs"], signature.inputs)
    outputs = {variant: _from_json(arrays, signature.outputs) for variant, arrays in raw["outputs"].items()}
    return GoldenRow(_request_from_json(raw["request"]), Encoded(inputs), outputs)


def _request_to_json(request: Request) -> dict[str, Any]:
    """Give the body of POST /v1/understand or /v1/rank that asks the same."""
    if isinstance(request, str):
        return {"query": request}
    query_features = {name: _number(value) for name, value in request.query_features.items()}
    candidates: dict[str, Any] = {"ids": list(request.ids), "features": _to_json(request.features)}
    if request.texts is not None:
        candidates["texts"] = list(request.texts)
    return {"query": {"text": request.text, "features": query_features}, "candidates": candidates}


def _request_from_json(raw: Mapping[str, Any]) -> Request:
    query = raw["query"]
    if isinstance(query, str):
        return query
    candidates = raw["candidates"]
    texts = candidates.get("texts")
    return RankRequest(
        ids=tuple(candidates["ids"]),
        text=query["text"],
        texts=None if texts is None else tuple(texts),
        features={name: np.array(column, dtype=np.float32) for name, column in candidates["features"].items()},
        query_features={name: math.nan if value is None else float(value) for name, value in query["features"].items()},
    )


def _to_json(arrays: Arrays) -> dict[str, Any]:
    return {name: _nested(array.tolist()) for name, array in arrays.items()}


def _nested(value: Any) -> Any:
    return [_nested(item) for item in value] if isinstance(value, list) else _number(value)


def _number(value: float) -> float | str | None:
    """JSON has neither NaN nor infinity: `null`, "inf" and "-inf" stand for them; numpy reads all three back."""
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else str(float(value))


def _from_json(raw: Mapping[str, Any], specs: tuple[TensorSpec, ...]) -> dict[str, NDArray[np.generic]]:
    dtypes = {spec.name: spec.dtype for spec in specs}
    return {name: np.array(array, dtype=dtypes[name]) for name, array in raw.items()}
