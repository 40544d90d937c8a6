"""Ranking: candidates by column in, an ordered list out; the same code offline and in the gateway."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from models.answers import Ranked
from models.batch import Arrays, Encoded
from models.errors import InputError
from models.features import PairFeaturizer
from models.in_list import places_in_list, relative_name
from models.manifest import Contents
from models.pairs import PairEncoder, blocks

PAIRS_A_BLOCK = 16
"""Pairs of texts that are scored at once."""
_MOST_ATTENDED = 2_000
"""Documents of a list that all read each other: with four heads their weights take 64 MB."""

_MOST_SCHEMAS = 256
"""Tuples of names whose columns are remembered: callers have few, and a hostile one must not fill the memory."""


class Table(Mapping[str, NDArray[np.float32]]):
    """Columns by name over one matrix [D, N] float32, missing as NaN; every name once."""

    __slots__ = ("_matrix_DN", "_names")

    def __init__(self, names: tuple[str, ...], matrix_DN: NDArray[np.float32]) -> None:
        self._names = names
        self._matrix_DN = matrix_DN

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return self._names

    @property
    def matrix(self) -> NDArray[np.float32]:
        """The columns themselves [D, N]."""
        return self._matrix_DN

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        try:
            return self._matrix_DN[:, self._names.index(name)]
        except ValueError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def take(self, rows: Sequence[int]) -> Table:
        """These documents alone, in this order."""
        return Table(self._names, self._matrix_DN[rows])

    def without(self, names: Container[str]) -> Table:
        """Every column but these."""
        kept = [place for place, name in enumerate(self._names) if name not in names]
        return Table(tuple(self._names[place] for place in kept), self._matrix_DN[:, kept])


@dataclass(frozen=True, slots=True)
class RankRequest:
    """One query and its D candidates, by column.

    features: name -> [D] float32, missing as NaN; a `Table` where they stand in one matrix already. query_features:
    name -> value, the same for every candidate that has none of its own.
    """

    ids: tuple[str, ...]
    text: str = ""
    texts: tuple[str, ...] | None = None
    features: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    query_features: Mapping[str, float] = field(default_factory=dict)

    def take(self, rows: Sequence[int]) -> RankRequest:
        """The same request for these candidates alone, in this order."""
        features = self.features
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            texts=None if self.texts is None else tuple(self.texts[row] for row in rows),
            features=features.take(rows)
            if isinstance(features, Table)
            else {name: column_D[rows] for name, column_D in features.items()},
        )

    def without(self, names: Container[str]) -> RankRequest:
        """The same request without these features."""
        features = self.features
        return replace(
            self,
            features=features.without(names)
            if isinstance(features, Table)
            else {name: column_D for name, column_D in features.items() if name not in names},
            query_features={name: value for name, value in self.query_features.items() if name not in names},
        )


class RankingModel:
    """Turns a request into what `model.onnx` scores, and scores into an order.

    featurizer: computes the first features from the texts. pairs: reads query and texts as tokens, without features.
    n_ids: tokens that those can tell apart, numbered from 0.
    """

    def __init__(
        self, contents: Contents, featurizer: PairFeaturizer | None = None, pairs: PairEncoder | None = None
    ) -> None:
        self._names = contents.features or ()
        self._columns = {name: column for column, name in enumerate(self._names)}
        self.featurizer = featurizer
        # A bundle of an earlier version may have fewer computed features.
        computed = () if featurizer is None else featurizer.names
        self._computed = {name: place for place, name in enumerate(computed) if name in self._columns}
        self._relative = frozenset(map(relative_name, contents.relative))
        # The last columns, in the order of the features that they are relative to.
        self._based_on = np.array([self._columns[name] for name in contents.relative], dtype=np.int64)
        self.sent = sent_features(contents)
        self._pairs = pairs
        self.n_ids = 0 if pairs is None else pairs.n_ids
        self._places_of: dict[tuple[str, ...], NDArray[np.int64]] = {}
        self._has_mask = any(spec.name == "mask" for spec in contents.signature.inputs)

    def encode(self, request: RankRequest) -> Encoded:
        """Build the model's input; InputError for a feature that the model does not know, and without texts it needs.

        `features` [D, F] float32, NaN where missing, with a `mask` [D] of ones for a model that reads the whole list;
        or `input_ids` and `attention_mask` int64 [D, T] of every pair.
        """
        if self._pairs is not None:
            self.expect_known(request)
            return self._pairs.encode(request.text, _texts(request))
        matrix_DF = self._matrix(request)
        if self.featurizer is not None:
            pairs_DF = self.featurizer.transform(request.text, _texts(request))
            for name, place in self._computed.items():
                matrix_DF[:, self._columns[name]] = pairs_DF[:, place]
        if self._relative:
            matrix_DF[:, -len(self._based_on) :] = places_in_list(matrix_DF[:, self._based_on])
        if self._has_mask:
            check_attended(len(matrix_DF))
            return Encoded({"features": matrix_DF, "mask": np.ones(len(matrix_DF), dtype=np.float32)})
        return Encoded({"features": matrix_DF})

    def expect_known(self, request: RankRequest) -> None:
        """Expect features that the model knows; InputError names one that it does not."""
        for name in (*request.query_features, *request.features):
            self._column(name)

    def blocks(self, encoded: Encoded, *, in_order: bool = False) -> list[NDArray[np.int64]]:
        """Rows of an encoded request that may be scored apart from each other, to the same scores.

        Pairs of like length together, or `in_order`, where a model reads tokens; everything at once where it reads
        features.
        """
        if self._pairs is None:
            return [np.arange(encoded.length)]
        return blocks(encoded, PAIRS_A_BLOCK, in_order=in_order)

    def decode(self, request: RankRequest, _encoded: Encoded, outputs: Arrays) -> tuple[Ranked, ...]:
        """Order candidates by falling score; equal scores keep the order they came in."""
        return ranked(request.ids, np.asarray(outputs["score"], dtype=np.float64).reshape(-1))

    def decode_batch(
        self, requests: Sequence[RankRequest], encoded: Sequence[Encoded], outputs: Sequence[Arrays]
    ) -> list[tuple[Ranked, ...]]:
        """Order the candidates of several requests, each as if it were alone."""
        return [self.decode(*one) for one in zip(requests, encoded, outputs, strict=True)]

    def _matrix(self, request: RankRequest) -> NDArray[np.float32]:
        """Features [D, F] as they were sent; a request's own matrix where it has every column in its place."""
        table = request.features
        if isinstance(table, Table) and table.names == self._names and not self._computed and not self._relative:
            for name in request.query_features:
                self._column(name)
            return np.ascontiguousarray(table.matrix)
        matrix_DF = np.full((len(request.ids), len(self._names)), np.nan, dtype=np.float32)
        for name, value in request.query_features.items():
            matrix_DF[:, self._column(name)] = value
        if isinstance(table, Table):
            matrix_DF[:, self._places(table.names)] = table.matrix
        else:
            for name, column_D in table.items():
                matrix_DF[:, self._column(name)] = column_D
        return matrix_DF

    def _places(self, names: tuple[str, ...]) -> NDArray[np.int64]:
        """The model's column of each name, looked up once for each tuple of names."""
        places = self._places_of.get(names)
        if places is None:
            places = np.array([self._column(name) for name in names], dtype=np.int64)
            if len(self._places_of) >= _MOST_SCHEMAS:
                self._places_of.clear()
            self._places_of[names] = places
        return places

    def _column(self, name: str) -> int:
        try:
            column = self._columns[name]
        except KeyError:
            known = ", ".join(self._names[:8]) + (", …" if len(self._names) > 8 else "") or "it has none"
            raise InputError(
                f"a feature must be one of the model's ({known}), got {name!r}; leave it out or correct its name",
                field=f"features.{name}",
            ) from None
        if name in self._computed:
            raise InputError(
                f"{name!r} is computed from the texts, it cannot be sent; leave it out", field=f"features.{name}"
            )
        if name in self._relative:
            raise InputError(
                f"{name!r} is computed from the list, it cannot be sent; leave it out", field=f"features.{name}"
            )
        return column


def sent_features(contents: Contents) -> tuple[str, ...]:
    """Names of the features that a caller sends: all but those computed from the texts or from the list."""
    computed = {relative_name(name) for name in contents.relative}
    if contents.pair_features is not None:
        computed.update(PairFeaturizer.names)
    return tuple(name for name in contents.features or () if name not in computed)


def check_attended(n: int) -> None:
    """Refuse a list that is too long for a model whose documents all read each other; InputError."""
    if n > _MOST_ATTENDED:
        raise InputError(
            f"a model that reads the whole list takes at most {_MOST_ATTENDED} candidates, got {n}; let a phase before "
            "it keep fewer",
            field="candidates",
        )


def ranked(ids: Sequence[str], scores_D: NDArray[np.float64]) -> tuple[Ranked, ...]:
    """Candidates by falling score; equal scores keep the order they came in."""
    order = np.argsort(-scores_D, kind="stable")
    names = [ids[place] for place in order.tolist()]
    return tuple(map(Ranked, names, scores_D[order].tolist(), range(1, len(names) + 1)))


def _texts(request: RankRequest) -> tuple[str, ...]:
    if request.texts is None:
        raise InputError("every candidate must have a text for this model, got none", field="candidates.texts")
    return request.texts
