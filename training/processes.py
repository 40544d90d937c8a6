"""Several processes for one training: each takes its part of every batch, PyTorch's DDP sums their gradients (gloo).

The first process reads, trains and goes on to export and register; the others, its followers, read and train alike and
end. They are started here (`training.engine: torchrun`, `n_processes`) or, on any number of machines, by
`torchrun ... -m rankyard train ...`. A loss is always of the whole batch: the answers to all parts are brought together
before it is taken, so that a loss of any form has the gradient that one process would give it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from models.errors import RankyardError

T = TypeVar("T")

_LOOPBACK = "127.0.0.1"
_TIMEOUT = timedelta(hours=1)
"""How long a process waits for the others: the first one judges the valid rows alone meanwhile."""


@dataclass(frozen=True, slots=True)
class Peers:
    """The processes of this training: the `rank` of this one, from 0, and their number; 0 of 1 without a group."""

    rank: int
    size: int

    @classmethod
    def found(cls) -> Peers:
        """The group that is open in this process."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls(0, 1)
        return cls(distributed.get_rank(), distributed.get_world_size())

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as it is called in training; the first process's weights become everyone's."""
        return network if self.size == 1 else DistributedDataParallel(network, forward_sync_buffers=False)

    def part(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's part of a batch's examples; one of them even where there are fewer than processes."""
        own = np.array_split(chosen, self.size)[self.rank]
        return own if len(own) else chosen[:1]

    def whole(self, outputs: Mapping[str, Tensor], n_examples: int) -> Mapping[str, Tensor]:
        """The answers to all parts of a batch of `n_examples`, in its order, with gradients to those of this process.

        DDP gives everyone the mean of all gradients. That of what the loss itself reads, such as a CRF's transitions,
        is whole in each process; that of the network is a part, to be summed, and counts `size` times for that.
        """
        if self.size == 1:
            return outputs
        own = {name: tensor[:0] if self.rank >= n_examples else tensor for name, tensor in outputs.items()}
        for tensor in own.values():
            tensor.register_hook(lambda gradient: gradient * self.size)  # type: ignore[no-untyped-call]
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, {name: tensor.detach().numpy() for name, tensor in own.items()})
        return {
            name: _joined(
                [own[name] if rank == self.rank else torch.from_numpy(parts[rank][name]) for rank in range(self.size)]
            )
            for name in own
        }

    def first(self, call: Callable[[], T]) -> T:
        """What `call` gives in the first process, in all of them."""
        if self.size == 1:
            return call()
        answer = [call() if self.rank == 0 else None]
        distributed.broadcast_object_list(answer, src=0)
        found: Any = answer[0]
        return found  # type: ignore[no-any-return]


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Join [rows, ...] along the rows, the rest padded by zeros to the largest."""
    largest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = []
    for part in parts:
        missing = [(0, most - size) for most, size in zip(largest, part.shape[1:], strict=True)]
        padded.append(functional.pad(part, [n for pair in reversed(missing) for n in pair]))
    return torch.cat(padded)


@contextmanager
def processes(n_processes: int, order: Mapping[str, Any]) -> Iterator[None]:
    """Open the group of this training: torchrun's where it started this process, else of followers started here.

    order: what `training.line` tells its followers, as JSON. RankyardError where a follower ends before its time.
    """
    if distributed.is_initialized():  # in a follower that was started here
        yield
        return
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        with _group():
            yield
        return
    store = TCPStore(_LOOPBACK, 0, is_master=True, wait_for_workers=False)
    n_threads = torch.get_num_threads()
    own_threads = max(1, n_threads // n_processes)
    with tempfile.TemporaryFile() as said:
        environment = os.environ | {"OMP_NUM_THREADS": str(own_threads), "PYTHONPATH": os.pathsep.join(sys.path)}
        followers = [
            _start({**order, "rank": rank, "n_processes": n_processes, "port": store.port}, environment, said)
            for rank in range(1, n_processes)
        ]
        torch.set_num_threads(own_threads)
        try:
            _wait_for(store, followers)
            with _group(store=store, rank=0, world_size=n_processes):
                yield
        except RuntimeError as error:  # what PyTorch's collectives raise where a peer is gone, but not they alone
            if not _has_ended(followers):
                raise
            said.seek(0)
            last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise RankyardError(
                f"all {n_processes} processes must train to the end, one has not: {last or error}; "
                "the same command with --resume goes on from the last checkpoint"
            ) from error
        finally:
            torch.set_num_threads(n_threads)
            for follower in followers:
                follower.kill()
                follower.wait()


@contextmanager
def joined(order: Mapping[str, Any]) -> Iterator[None]:
    """Be the follower that `order`, as `processes` told it, speaks of: member of the group of its first process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process, which ends the others
    store = TCPStore(_LOOPBACK, order["port"], is_master=False)
    store.set(_ready(order["rank"]), "1")
    with _group(store=store, rank=order["rank"], world_size=order["n_processes"]):
        yield


def _start(order: Mapping[str, Any], environment: Mapping[str, str], said: Any) -> subprocess.Popen[str]:
    follower = subprocess.Popen(
        [sys.executable, "-m", "training.follower"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=said,
        env=dict(environment),
        text=True,
    )
    if follower.stdin is None:
        raise AssertionError("a pipe was asked for")
    follower.stdin.write(json.dumps(order))
    follower.stdin.close()
    return follower


def _wait_for(store: TCPStore, followers: Sequence[subprocess.Popen[str]]) -> None:
    while not store.check([_ready(rank) for rank in range(1, len(followers) + 1)]):
        if any(follower.poll() is not None for follower in followers):
            raise RuntimeError("it ended before it began")
        time.sleep(0.05)


def _has_ended(followers: Sequence[subprocess.Popen[str]]) -> bool:
    """Whether one of them has, or does within a moment: its connection may be gone before it is."""
    for _ in range(20):
        if any(follower.poll() is not None for follower in followers):
            return True
        time.sleep(0.1)
    return False


def _ready(rank: int) -> str:
    return f"process {rank} is ready"


@contextmanager
def _group(**arguments: Any) -> Iterator[None]:
    distributed.init_process_group("gloo", timeout=_TIMEOUT, **arguments)
    try:
        yield
    finally:
        distributed.destroy_process_group()
