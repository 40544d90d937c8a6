"""What candidates must keep to, in whatever form they come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.errors import InputError, TooLargeError
from serving.gateway.config import LimitsConfig


def check_candidates(
    ids: Sequence[str], texts: Sequence[str | None] | None, query: str, limits: LimitsConfig, place: str
) -> None:
    """Hold a request against the limits. place: where an id stands, with `{}` for its number."""
    check_number(len(ids), limits)
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        for index, identity in enumerate(ids):
            if identity in seen:
                raise InputError(
                    f"a candidate's id must be its own, got {identity[:60]!r} twice; send every candidate once",
                    field=place.format(index),
                )
            seen.add(identity)
    check_texts(query, texts, len(ids), limits)


def check_number(n: int, limits: LimitsConfig) -> None:
    """Refuse more candidates than one request may have; TooLargeError."""
    if n > limits.max_candidates:
        raise TooLargeError(
            f"a request must have at most {limits.max_candidates} candidates, got {n}; send fewer",
            field="candidates",
        )


def check_texts(query: str, texts: Sequence[str | None] | None, n: int, limits: LimitsConfig) -> None:
    """Hold the texts of `n` candidates and of their query against the limits; TooLargeError, InputError."""
    if len(query) > limits.max_query_chars:
        raise TooLargeError(
            f"a query must have at most {limits.max_query_chars} characters, got {len(query)}; shorten it",
            field="query.text",
        )
    if texts is None:
        return
    check_length("candidates.texts", len(texts), n)
    longest = max((len(text) for text in texts if text is not None), default=0)
    if longest > limits.max_text_chars:
        raise TooLargeError(
            f"a candidate's text must have at most {limits.max_text_chars} characters, got {longest}; shorten it",
            field="candidates",
        )


def check_length(field: str, found: int, n: int) -> None:
    """Refuse a column that is not as long as the candidates are many; InputError."""
    if found != n:
        raise InputError(
            f"{field} must have one value a candidate, got {found} for {n}; use null for missing", field=field
        )


def float32(field: str, values: Sequence[float | None] | NDArray[np.generic]) -> NDArray[np.float32]:
    """Values as float32, None as NaN; InputError names the first that does not fit."""
    with np.errstate(over="ignore"):
        column = np.asarray(values, dtype=np.float32)
    if np.isinf(column).any():
        first = int(np.isinf(column).ravel().argmax())
        value = np.ravel(np.asarray(values))[first]
        raise InputError(
            f"{field} must fit into float32 (up to 3.4e38), value {first} is {value!s}; use null for missing",
            field=field,
        )
    return column
