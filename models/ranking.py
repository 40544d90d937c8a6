"""Ranking: candidates by column in, an ordered list out; the same code offline and in the gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.answers import Ranked as Ranked
from models.batch import Arrays, Encoded
from models.errors import InputError
from models.features import PairFeaturizer
from models.manifest import Contents
from models.pairs import PairEncoder, blocks

_PAIRS_A_BLOCK = 16
_MOST_ATTENDED = 2_000
"""Documents of a list that all read each other: with four heads their weights take 64 MB."""


@dataclass(frozen=True, slots=True)
class RankRequest:
    """One query and its D candidates, by column.

    features: name -> [D] float32, missing as NaN. query_features: name -> value, the same for every candidate.
    """

    ids: tuple[str, ...]
    text: str = ""
    texts: tuple[str, ...] | None = None
    features: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    query_features: Mapping[str, float] = field(default_factory=dict)


class RankingModel:
    """Turns a request into what `model.onnx` scores, and scores into an order.

    featurizer: computes the first features from the texts. pairs: reads query and texts as tokens, without features.
    """

    def __init__(
        self, contents: Contents, featurizer: PairFeaturizer | None = None, pairs: PairEncoder | None = None
    ) -> None:
        self._names = contents.features or ()
        self._columns = {name: column for column, name in enumerate(self._names)}
        self._featurizer = featurizer
        # A bundle of an earlier version may have fewer computed features.
        computed = () if featurizer is None else featurizer.names
        self._computed = {name: place for place, name in enumerate(computed) if name in self._columns}
        self._pairs = pairs
        self._has_mask = any(spec.name == "mask" for spec in contents.signature.inputs)

    def encode(self, request: RankRequest) -> Encoded:
        """Build the model's input; InputError for a feature that the model does not know, and without texts it needs.

        `features` [D, F] float32, NaN where missing, with a `mask` [D] of ones for a model that reads the whole list;
        or `input_ids` and `attention_mask` int64 [D, T] of every pair.
        """
        if self._pairs is not None:
            for name in (*request.query_features, *request.features):
                self._column(name)
            return self._pairs.encode(request.text, _texts(request))
        matrix_DF = np.full((len(request.ids), len(self._names)), np.nan, dtype=np.float32)
        for name, value in request.query_features.items():
            matrix_DF[:, self._column(name)] = value
        for name, column_D in request.features.items():
            matrix_DF[:, self._column(name)] = column_D
        if self._featurizer is not None:
            pairs_DF = self._featurizer.transform(request.text, _texts(request))
            for name, place in self._computed.items():
                matrix_DF[:, self._columns[name]] = pairs_DF[:, place]
        if self._has_mask:
            if len(matrix_DF) > _MOST_ATTENDED:
                raise InputError(
                    f"a model that reads the whole list takes at most {_MOST_ATTENDED} candidates, got "
                    f"{len(matrix_DF)}; let a phase before it keep fewer",
                    field="candidates",
                )
            return Encoded({"features": matrix_DF, "mask": np.ones(len(matrix_DF), dtype=np.float32)})
        return Encoded({"features": matrix_DF})

    def blocks(self, encoded: Encoded) -> list[NDArray[np.int64]]:
        """Rows of an encoded request that may be scored apart from each other, to the same scores.

        Pairs of like length together, where a model reads tokens; everything at once where it reads features.
        """
        if self._pairs is None:
            return [np.arange(encoded.length)]
        return blocks(encoded, _PAIRS_A_BLOCK)

    def decode(self, request: RankRequest, _encoded: Encoded, outputs: Arrays) -> tuple[Ranked, ...]:
        """Order candidates by falling score; equal scores keep the order they came in."""
        return ranked(request.ids, np.asarray(outputs["score"], dtype=np.float64).reshape(-1))

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
        return column


def ranked(ids: Sequence[str], scores_D: NDArray[np.float64]) -> tuple[Ranked, ...]:
    """Candidates by falling score; equal scores keep the order they came in."""
    order = np.argsort(-scores_D, kind="stable")
    return tuple(Ranked(ids[i], float(scores_D[i]), rank) for rank, i in enumerate(order.tolist(), start=1))


def _texts(request: RankRequest) -> tuple[str, ...]:
    if request.texts is None:
        raise InputError("every candidate must have a text for this model, got none", field="candidates.texts")
    return request.texts
