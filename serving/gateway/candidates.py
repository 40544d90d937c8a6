"""Candidates as they come in, by row or by column, checked and turned into one request by column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError, TooLargeError
from models.ranking import RankRequest
from serving.gateway import wire
from serving.gateway.config import LimitsConfig


def by_column(request: wire.RankRequest, limits: LimitsConfig) -> RankRequest:
    """Check a request against the limits and turn it into columns.

    InputError for duplicate ids, columns of another length and numbers beyond float32; TooLargeError beyond a limit.
    """
    candidates = request.candidates
    if isinstance(candidates, wire.Columns):
        ids, texts, columns = candidates.ids, candidates.texts, candidates.features
    else:
        ids = [candidate.id for candidate in candidates]
        has_text = any(candidate.text is not None for candidate in candidates)
        texts = [candidate.text for candidate in candidates] if has_text else None
        names = dict.fromkeys(name for candidate in candidates for name in candidate.features)
        columns = {name: [candidate.features.get(name) for candidate in candidates] for name in names}
    if len(ids) > limits.max_candidates:
        raise TooLargeError(
            f"a request must have at most {limits.max_candidates} candidates, got {len(ids)}; send fewer",
            field="candidates",
        )
    if len(set(ids)) != len(ids):
        _refuse_duplicate(ids, is_columns=isinstance(candidates, wire.Columns))
    _check_texts(request.query.text, texts, len(ids), limits)
    return RankRequest(
        ids=tuple(ids),
        text=request.query.text,
        texts=None if texts is None else tuple(text or "" for text in texts),
        features={name: _column(name, values, len(ids)) for name, values in columns.items()},
        query_features={
            name: float(_float32(f"query.features.{name}", [value])[0])
            for name, value in request.query.features.items()
        },
    )


def _refuse_duplicate(ids: Sequence[str], *, is_columns: bool) -> None:
    seen: set[str] = set()
    for index, identity in enumerate(ids):
        if identity in seen:
            raise InputError(
                f"a candidate's id must be its own, got {identity!r} twice; send every candidate once",
                field=f"candidates.ids[{index}]" if is_columns else f"candidates[{index}].id",
            )
        seen.add(identity)


def _check_texts(query: str, texts: Sequence[str | None] | None, n: int, limits: LimitsConfig) -> None:
    if len(query) > limits.max_query_chars:
        raise TooLargeError(
            f"a query must have at most {limits.max_query_chars} characters, got {len(query)}; shorten it",
            field="query.text",
        )
    if texts is None:
        return
    _check_length("candidates.texts", len(texts), n)
    longest = max((len(text) for text in texts if text is not None), default=0)
    if longest > limits.max_text_chars:
        raise TooLargeError(
            f"a candidate's text must have at most {limits.max_text_chars} characters, got {longest}; shorten it",
            field="candidates",
        )


def _column(name: str, values: Sequence[float | None], n: int) -> NDArray[np.float32]:
    field = f"candidates.features.{name}"
    _check_length(field, len(values), n)
    return _float32(field, values)


def _check_length(field: str, found: int, n: int) -> None:
    if found != n:
        raise InputError(
            f"{field} must have one value a candidate, got {found} for {n}; use null for missing", field=field
        )


def _float32(field: str, values: Sequence[float | None]) -> NDArray[np.float32]:
    """Values as float32, None as NaN."""
    with np.errstate(over="ignore"):
        column = np.array(values, dtype=np.float32)
    if np.isinf(column).any():
        raise InputError(
            f"{field} must fit into float32 (up to 3.4e38), a value does not; use null for missing", field=field
        )
    return column


def path(request: wire.RankRequest, field: str | None) -> str | None:
    """Where in the sent JSON a field of `models.ranking` stands: `features.price` -> `candidates[0].features.price`."""
    if field is None or not field.startswith("features."):
        return field
    name = field.removeprefix("features.")
    if name in request.query.features:
        return f"query.{field}"
    if isinstance(request.candidates, wire.Columns):
        return f"candidates.{field}"
    return next((f"candidates[{i}].{field}" for i, row in enumerate(request.candidates) if name in row.features), field)
