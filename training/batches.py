"""Which texts go through a network together: batches of like length, so that little is spent on padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.batch import Arrays, Encoded, collate, split
from models.manifest import Signature

_CHUNK_BATCHES = 50


def shuffled_batches(encoded: Sequence[Encoded], batch_size: int, seed: tuple[int, int]) -> list[NDArray[np.int64]]:
    """Give indices of examples for one epoch, in random batches of like length; all of them once.

    Shuffles, sorts by length within chunks of 50 batches, then shuffles the batches. seed: of the training, and epoch.
    """
    generator = np.random.default_rng(seed)
    lengths_N = np.array([request.length for request in encoded])
    order_N = generator.permutation(len(encoded))
    batches: list[NDArray[np.int64]] = []
    for chunk in range(0, len(order_N), batch_size * _CHUNK_BATCHES):
        members = order_N[chunk : chunk + batch_size * _CHUNK_BATCHES]
        members = members[np.argsort(lengths_N[members], kind="stable")]
        batches.extend(members[start : start + batch_size] for start in range(0, len(members), batch_size))
    return [batches[index] for index in generator.permutation(len(batches))]


def sorted_batches(encoded: Sequence[Encoded], n_tokens: int) -> Iterator[list[int]]:
    """Give indices of all examples, smallest first, in batches of at most `n_tokens` tokens with padding.

    An example's tokens are the cells of its largest array: of a list, documents times tokens or features.
    """
    batch: list[int] = []
    sizes = [max(array.size for array in one.arrays.values()) for one in encoded]
    for index in sorted(range(len(encoded)), key=lambda index: (sizes[index], encoded[index].length)):
        if batch and (len(batch) + 1) * sizes[index] > n_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def answers_of(
    run: Callable[[Sequence[Encoded]], Arrays],
    requests: Sequence[Encoded],
    signature: Signature,
    n_tokens: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Arrays]:
    """What `run` answers to each request, in order, without the padding of the batches that it is asked in.

    progress: is told how many requests are answered.
    """
    answers: dict[int, Arrays] = {}
    for chosen in sorted_batches(requests, n_tokens):
        batch = [requests[index] for index in chosen]
        for index, request, answer in zip(chosen, batch, split(run(batch), batch, signature), strict=True):
            answers[index] = {
                name: array.copy() if array.ndim < 2 else array[..., : request.length, :].copy()
                for name, array in answer.items()
            }
        progress(len(answers))
    return [answers[index] for index in range(len(requests))]


def tensors(requests: Sequence[Encoded], signature: Signature) -> tuple[Tensor, ...]:
    """Give the inputs of a batch in the signature's order, padded as the gateway pads them."""
    arrays = collate(requests, signature)
    return tuple(torch.from_numpy(arrays[spec.name]) for spec in signature.inputs)
