"""`predictions.npz`: a model's answers to its test examples, so that a promotion can pair them with another model's.

Shapes: N examples, M metrics, S slices. The file holds plain arrays only and is read without pickle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import BundleError
from models.metrics import Ratio

PREDICTIONS = "predictions.npz"

_ID_BYTES = 16
_ANSWER = "answer."


@dataclass(frozen=True, slots=True)
class Predictions:
    """What each of N examples adds to each metric, which slices it is in, and what the model answered.

    example_ids: 16 bytes that name an example by its content; equal examples have equal ids.
    ratios: metric -> Ratio over the N examples. slices: name -> mask [N].
    answers: `label` [N] int64 (index among the model's labels, -1 for an answer that is none of them) and `confidence`
    [N] float32 where there are labels, `scope` [N] float32 (log-odds of being in scope) where the model has them;
    `scores` float32 of all lists one after another and `offsets` [N + 1] int64 for rankings.
    """

    example_ids: tuple[bytes, ...]
    ratios: Mapping[str, Ratio]
    slices: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    answers: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.example_ids)

    def paired(self, other: Predictions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Positions in self and in `other` of the examples that both answered, in the order of self.

        An example that occurs several times is paired by order of occurrence, as often as both have it.
        """
        places: defaultdict[bytes, list[int]] = defaultdict(list)
        for place in range(len(other) - 1, -1, -1):
            places[other.example_ids[place]].append(place)
        pairs = [(i, places[name].pop()) for i, name in enumerate(self.example_ids) if places.get(name)]
        indices = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return indices[:, 0], indices[:, 1]

    def save(self, directory: Path) -> None:
        """Write `predictions.npz` into a bundle's draft; equal predictions give equal bytes."""
        ratios = self.ratios.values()
        shape = (len(ratios), len(self))
        arrays: dict[str, Any] = {
            "example_ids": np.frombuffer(b"".join(self.example_ids), dtype=np.uint8).reshape(-1, _ID_BYTES),
            "metrics": np.array(list(self.ratios), dtype=np.str_),
            "numerators": np.array([ratio.numerator_N for ratio in ratios], dtype=np.float64).reshape(shape),
            "denominators": np.array([ratio.denominator_N for ratio in ratios], dtype=np.float64).reshape(shape),
            "slices": np.array(list(self.slices), dtype=np.str_),
            "masks": np.array(list(self.slices.values()), dtype=np.bool_).reshape(len(self.slices), len(self)),
        }
        arrays |= {_ANSWER + name: array for name, array in self.answers.items()}
        np.savez_compressed(directory / PREDICTIONS, **arrays)

    @classmethod
    def load(cls, directory: Path) -> Predictions:
        """Read a bundle's `predictions.npz`; BundleError where it is absent, broken or inconsistent."""
        file = directory / PREDICTIONS
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
                return _read({name: stored[name] for name in stored.files})
        except FileNotFoundError as error:
            raise BundleError(f"a bundle must hold {PREDICTIONS}, {directory} has none") from error
        except Exception as error:  # a broken zip makes zipfile, zlib and numpy raise ten unrelated types
            raise BundleError(f"{file} must be predictions as written by training, got: {error}") from error


def _read(stored: Mapping[str, NDArray[np.generic]]) -> Predictions:
    ids = stored["example_ids"]
    if ids.dtype != np.uint8 or ids.ndim != 2 or ids.shape[1] != _ID_BYTES:
        raise ValueError(f"example_ids are {ids.dtype} {ids.shape}, not uint8 [N, {_ID_BYTES}]")
    metrics, slices = stored["metrics"].tolist(), stored["slices"].tolist()
    numerators, denominators, masks = stored["numerators"], stored["denominators"], stored["masks"]
    for name, array, dtype, n_rows in (
        ("numerators", numerators, np.float64, len(metrics)),
        ("denominators", denominators, np.float64, len(metrics)),
        ("masks", masks, np.bool_, len(slices)),
    ):
        if array.dtype != dtype or array.shape != (n_rows, len(ids)):
            raise ValueError(f"{name} are {array.dtype} {array.shape}, not {np.dtype(dtype)} {(n_rows, len(ids))}")
    return Predictions(
        example_ids=tuple(row.tobytes() for row in ids),
        ratios={name: Ratio(numerators[i], denominators[i]) for i, name in enumerate(metrics)},
        slices={name: masks[i] for i, name in enumerate(slices)},
        answers={name.removeprefix(_ANSWER): array for name, array in stored.items() if name.startswith(_ANSWER)},
    )
