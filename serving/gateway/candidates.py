"""Candidates as they come in, by row, by column or by Arrow, checked and turned into one request by column.

Legend: D candidates, N features that were sent.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.ranking import RankRequest, Table
from serving.gateway import arrow, wire
from serving.gateway.columns import ColumnReader, TextColumns, check_names, may_have_nan
from serving.gateway.config import LimitsConfig
from serving.gateway.rules import check_candidates, check_length, float32


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to rank: its candidates by column, and what else it asks."""

    request: RankRequest
    top_k: int | None
    explain: wire.Explain
    sent: wire.RankRequest | None
    """The request as it was sent, where errors are to name places in it."""

    def path(self, field: str | None) -> str | None:
        """Where a field of `models.ranking` stands in it: `features.price` -> `candidates[0].features.price`."""
        if field is None or not field.startswith("features."):
            return field
        name = field.removeprefix("features.")
        if self.sent is None or name in self.sent.query.features:
            return f"query.{field}" if name in self.request.query_features else f"candidates.{field}"
        candidates = self.sent.candidates
        if isinstance(candidates, wire.Columns):
            return f"candidates.{field}"
        return next((f"candidates[{i}].{field}" for i, row in enumerate(candidates) if name in row.features), field)


class Reader:
    """Reads requests to rank.

    names: features that the served models may be sent. Requests by row are decoded into a struct with a field for each
    of them, so that names are matched while the JSON is read; a request that has other ones is read the general way,
    which says what is wrong with it.
    """

    def __init__(self, limits: LimitsConfig, names: Sequence[str]) -> None:
        self._limits = limits
        self._names = tuple(dict.fromkeys(names))
        self._fields = {name: f"f{place}" for place, name in enumerate(self._names)}
        self._decoder = _typed_decoder(self._fields)
        self._columns = ColumnReader()

    def read(self, body: bytes, *, is_arrow: bool = False) -> Asked:
        """Read a body; what `wire.decode` and `by_column` raise for a bad one."""
        if is_arrow:
            options, request = arrow.read(body, self._limits)
            check_candidates(request.ids, request.texts, options.query.text, self._limits, "candidates.ids[{}]")
            return Asked(request, options.top_k, options.explain, None)
        if may_have_nan(body):
            body = wire.without_nan(body)
        if self._decoder is not None:
            try:
                typed = self._decoder.decode(body)
                request = self._by_column(typed, body)
            except (msgspec.MsgspecError, RecursionError, ValueError):
                pass  # the general way finds what is wrong, or copes
            else:
                return Asked(request, typed.top_k, typed.explain, None)
        sent = wire.decode(body, wire.rank_decoder)
        if isinstance(sent.candidates, wire.Columns):
            check_names(body, sent.candidates, sent.query)
        return Asked(by_column(sent, self._limits), sent.top_k, sent.explain, sent)

    def _by_column(self, typed: Any, body: bytes) -> RankRequest:
        rows = typed.candidates
        if isinstance(rows, TextColumns):
            check_names(body, rows, typed.query)
            return self._of_text(rows, typed.query)
        ids = tuple([row.id for row in rows])
        sent_texts = [row.text for row in rows]
        texts = None if sent_texts.count(None) == len(rows) else tuple([text or "" for text in sent_texts])
        check_candidates(ids, texts, typed.query.text, self._limits, "candidates[{}].id")
        matrix_DN = _matrix([msgspec.structs.astuple(row.features) for row in rows], len(self._names))
        table = Table(self._names, matrix_DN)
        if typed.query.features:
            table = table.without(self._absent(rows, typed.query.features))
        return RankRequest(ids, typed.query.text, texts, table, _query_features(typed.query))

    def _of_text(self, sent: TextColumns, query: wire.Query) -> RankRequest:
        check_candidates(sent.ids, sent.texts, query.text, self._limits, "candidates.ids[{}]")
        matrix_ND = self._columns.read(tuple(sent.features.values()), len(sent.ids))
        return RankRequest(
            ids=tuple(sent.ids),
            text=query.text,
            texts=None if sent.texts is None else tuple([text or "" for text in sent.texts]),
            features=Table(tuple(sent.features), matrix_ND.T),
            query_features=_query_features(query),
        )

    def _absent(self, rows: Sequence[Any], names: Sequence[str]) -> set[str]:
        """Which of these names no candidate has: there the query's own value holds."""
        return {
            name
            for name in names
            if (field := self._fields.get(name)) is not None
            and all(getattr(row.features, field) is _ABSENT for row in rows)
        }


_ABSENT = float("nan")
"""Stands for a feature that a candidate does not have; null is None. NaN, so that numpy reads it as missing."""


def _typed_decoder(fields: dict[str, str]) -> msgspec.json.Decoder[Any] | None:
    """Decode into a struct of these features; None for names that no struct can have."""
    try:
        features = msgspec.defstruct(
            "Features",
            [(field, wire.Number, _ABSENT) for field in fields.values()],
            rename={field: name for name, field in fields.items()},
            frozen=True,
            forbid_unknown_fields=True,
            gc=False,
        )
    except ValueError:
        return None
    candidate = msgspec.defstruct(
        "Candidate",
        [("id", str), ("text", str | None, None), ("features", features, features())],
        frozen=True,
        forbid_unknown_fields=True,
        gc=False,
    )
    request = msgspec.defstruct(
        "RankRequest",
        [
            ("candidates", list[candidate] | TextColumns),  # type: ignore[valid-type]
            ("query", wire.Query, wire.Query()),
            ("top_k", wire.TopK, None),
            ("explain", wire.Explain, False),
        ],
        frozen=True,
        forbid_unknown_fields=True,
    )
    return msgspec.json.Decoder(request)


def _matrix(rows: Sequence[Sequence[float | None]], n_columns: int) -> NDArray[np.float32]:
    """Values [D, N] as float32, None as NaN; ValueError where one does not fit."""
    shape = (len(rows), n_columns)
    matrix_DN = None
    # Faster than numpy (43 against 70 us for 100 x 46), but it knows no None: one look says whether some are likely.
    if rows and None not in rows[0]:
        with contextlib.suppress(struct.error):
            packed = struct.pack(f"{len(rows) * n_columns}f", *chain.from_iterable(rows))
            matrix_DN = np.frombuffer(packed, np.float32).reshape(shape)
    if matrix_DN is None:
        with np.errstate(over="ignore"):
            flat = np.fromiter(chain.from_iterable(rows), np.float32, len(rows) * n_columns)
        matrix_DN = flat.reshape(shape)
    if np.isinf(matrix_DN).any():
        raise ValueError("numbers beyond float32")
    return matrix_DN


def by_column(request: wire.RankRequest, limits: LimitsConfig) -> RankRequest:
    """Check a request against the limits and turn it into columns.

    InputError for duplicate ids, columns of another length and numbers beyond float32; TooLargeError beyond a limit.
    """
    candidates = request.candidates
    if isinstance(candidates, wire.Columns):
        ids, texts, columns = candidates.ids, candidates.texts, candidates.features
        place = "candidates.ids[{}]"
    else:
        ids = [candidate.id for candidate in candidates]
        has_text = any(candidate.text is not None for candidate in candidates)
        texts = [candidate.text for candidate in candidates] if has_text else None
        names = dict.fromkeys(name for candidate in candidates for name in candidate.features)
        columns = {name: [candidate.features.get(name) for candidate in candidates] for name in names}
        place = "candidates[{}].id"
    check_candidates(ids, texts, request.query.text, limits, place)
    return RankRequest(
        ids=tuple(ids),
        text=request.query.text,
        texts=None if texts is None else tuple(text or "" for text in texts),
        features=_table(columns, len(ids)),
        query_features=_query_features(request.query),
    )


def _table(columns: dict[str, list[float | None]], n: int) -> Table:
    if any(len(values) != n for values in columns.values()):
        for name, values in columns.items():
            check_length(f"candidates.features.{name}", len(values), n)
    try:
        matrix_ND = _matrix(list(columns.values()), n)
    except ValueError:
        matrix_ND = np.stack([float32(f"candidates.features.{name}", values) for name, values in columns.items()])
    return Table(tuple(columns), matrix_ND.T)


def _query_features(query: wire.Query) -> dict[str, float]:
    return {name: float(float32(f"query.features.{name}", [value])[0]) for name, value in query.features.items()}
