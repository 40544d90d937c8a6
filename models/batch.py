"""From single requests to one batch of tensors and back, the same way offline, in the gateway and on Triton.

Two layouts exist. `rows`: every request is one row, its arrays padded to the longest of the batch; a long text in
windows is several. `concat`: every request is a block of rows (a candidate list), blocks are stacked under each other
and padded to the widest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.manifest import Signature, TensorSpec

Arrays = Mapping[str, NDArray[np.generic]]

_TOGETHER = 256


class Word(NamedTuple):
    """A word of the user's text: `text[start:end]`."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """One request as the model reads it.

    arrays: input name -> [length, ...] under `rows`, [documents, ...] under `concat`, [windows, length] of a long text.
    words, first_pieces: where each word of the text begins among the tokens (tagging only).
    word_windows: in which window each word is read; empty where there are no windows.
    """

    arrays: Arrays
    words: tuple[Word, ...] = ()
    first_pieces: tuple[int, ...] = ()
    word_windows: tuple[int, ...] = ()
    n_windows: int = 1

    @property
    def length(self) -> int:
        """Tokens of a text (of its widest window), documents of a list: what the request costs."""
        axis = 0 if self.n_windows == 1 else 1
        return max([array.shape[axis] for array in self.arrays.values()], default=0)


def collate(requests: Sequence[Encoded], signature: Signature) -> dict[str, NDArray[np.generic]]:
    """Join requests into a batch: input name -> [batch, longest, ...] under `rows`, [all rows, ...] under `concat`."""
    return {spec.name: _join([request.arrays[spec.name] for request in requests], spec) for spec in signature.inputs}


def _join(blocks: Sequence[NDArray[np.generic]], spec: TensorSpec) -> NDArray[np.generic]:
    """Stack blocks [rows, length, ...] under each other, each padded to the longest."""
    blocks = [block if block.ndim == len(spec.shape) else block[None] for block in blocks]
    if len(blocks) == 1:
        return blocks[0].astype(spec.dtype, copy=False)
    if len({block.shape[1:] for block in blocks}) == 1:
        return np.concatenate(blocks, dtype=spec.dtype)
    longest = max([block.shape[1] for block in blocks])
    joined = np.empty((sum([len(block) for block in blocks]), longest, *blocks[0].shape[2:]), dtype=spec.dtype)
    joined.fill(spec.pad)
    row = 0
    for block in blocks:
        joined[row : row + len(block), : block.shape[1]] = block
        row += len(block)
    return joined


def n_rows(request: Encoded, signature: Signature) -> int:
    """Rows that a request has in a batch: 1, its windows, or its documents."""
    spec = signature.inputs[0]
    array = request.arrays[spec.name]
    return array.shape[0] if array.ndim == len(spec.shape) else 1


def split(outputs: Arrays, requests: Sequence[Encoded], signature: Signature) -> list[dict[str, NDArray[np.generic]]]:
    """Undo `collate` on a batch's outputs: one mapping a request, in the order given.

    Numbers of documents under `rows`, [batch, longest], are cut to each request's own. A text in windows gets the mean
    over them of what is said of the whole text, and what is said of tokens, [windows, length, K], as it is.
    """
    listed = {spec.name for spec in signature.outputs if spec.shape == (-1, -1)}
    answers: list[dict[str, NDArray[np.generic]]] = []
    row = 0
    for request in requests:
        last = row + n_rows(request, signature)
        if signature.layout == "concat":
            answers.append({name: array[row:last] for name, array in outputs.items()})
        elif last == row + 1:
            answer = {name: array[row] for name, array in outputs.items()}
            answers.append(answer | {name: answer[name][: request.length] for name in listed})
        else:
            windows = {name: array[row:last] for name, array in outputs.items()}
            answers.append({name: array.mean(axis=0) if array.ndim < 3 else array for name, array in windows.items()})
        row = last
    return answers


def parts(n: int) -> list[slice]:
    """Parts of `n` requests that are few enough to be read together: more would take memory, and no less time."""
    return [slice(begin, begin + _TOGETHER) for begin in range(0, n, _TOGETHER)]


def stacked(outputs: Sequence[Arrays]) -> dict[str, NDArray[np.generic]]:
    """Outputs of whole texts, each of its own request, one below the other: name -> [requests, ...]."""
    return {name: np.array([one[name] for one in outputs]) for name in outputs[0]}
