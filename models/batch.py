"""From single requests to one batch of tensors and back, the same way offline, in the gateway and on Triton.

Two layouts exist. `rows`: every request is one row, its arrays padded to the longest of the batch. `concat`: every
request is a block of rows (a candidate list), blocks are stacked under each other and padded to the widest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.manifest import Signature, TensorSpec

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the user's text: `text[start:end]`."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """One request as the model reads it.

    arrays: input name -> [length, ...] under `rows`, [documents, ...] under `concat`.
    words, first_pieces: where each word of the text begins among the tokens (tagging only).
    """

    arrays: Arrays
    words: tuple[Word, ...] = ()
    first_pieces: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of a text, documents of a list: what the request costs."""
        return max((array.shape[0] for array in self.arrays.values()), default=0)


def collate(requests: Sequence[Encoded], signature: Signature) -> dict[str, NDArray[np.generic]]:
    """Join requests into a batch: input name -> [batch, longest, ...] under `rows`, [all rows, ...] under `concat`."""
    return {
        spec.name: _join([request.arrays[spec.name] for request in requests], spec, signature.layout)
        for spec in signature.inputs
    }


def _join(blocks: Sequence[NDArray[np.generic]], spec: TensorSpec, layout: str) -> NDArray[np.generic]:
    if layout == "rows":
        blocks = [block[None] for block in blocks]
    if len({block.shape[1:] for block in blocks}) == 1:
        return np.concatenate(blocks, dtype=spec.dtype)
    longest = np.max([block.shape[1:] for block in blocks], axis=0)
    joined = np.full((sum(map(len, blocks)), *longest), spec.pad, dtype=spec.dtype)
    row = 0
    for block in blocks:
        joined[(slice(row, row + len(block)), *map(slice, block.shape[1:]))] = block
        row += len(block)
    return joined


def split(outputs: Arrays, requests: Sequence[Encoded], signature: Signature) -> list[dict[str, NDArray[np.generic]]]:
    """Undo `collate` on a batch's outputs: one mapping a request, in the order given.

    Numbers of documents under `rows`, [batch, longest], are cut to each request's own; what is said of tokens stays
    padded to the batch.
    """
    if signature.layout == "rows":
        listed = {spec.name for spec in signature.outputs if spec.shape == (-1, -1)}
        return [
            {
                name: array[index, : request.length] if name in listed else array[index]
                for name, array in outputs.items()
            }
            for index, request in enumerate(requests)
        ]
    ends = np.cumsum([request.length for request in requests])[:-1]
    pieces = {name: np.split(array, ends) for name, array in outputs.items()}
    return [{name: blocks[index] for name, blocks in pieces.items()} for index in range(len(requests))]
