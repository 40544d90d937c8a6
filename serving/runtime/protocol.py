"""What a runtime must do; `tests/conformance/test_runtime.py` runs against every implementation."""

from __future__ import annotations

from collections.abc import Awaitable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.batch import Arrays
from models.errors import RankyardError
from registry.bundle import Bundle

trace_context: ContextVar[tuple[str, str] | None] = ContextVar("trace_context", default=None)
"""W3C `traceparent` and `tracestate` of the traced request that `infer` works for, to be sent on to another server."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A verified bundle under the name and version that answers are signed with (`shop-query/3`)."""

    name: str
    version: str
    bundle: Bundle

    @property
    def ref(self) -> str:
        """`NAME/VERSION`."""
        return f"{self.name}/{self.version}"


def check_rows(model: ServedModel, outputs: Arrays, n_rows: int) -> None:
    """Expect every output to answer `n_rows` rows; RankyardError otherwise."""
    for name, array in outputs.items():
        if array.shape[:1] != (n_rows,):
            raise RankyardError(
                f"{model.ref} must answer {n_rows} rows in {name}, its shape is {array.shape}; export the model again"
            )


class Runtime(Protocol):
    """Runs batches of loaded models. Errors are `models.errors`: UnavailableError when the runtime is not there."""

    n_workers: int
    """How many batches it works on at once; more would only wait inside it."""
    n_ahead: int
    """How many full batches more may stand ready in it, so that no worker idles while the next one is made."""

    @property
    def is_degraded(self) -> bool:
        """Whether it answers from elsewhere than it should."""

    async def load(self, model: ServedModel) -> None:
        """Make `model` ready to run and prove it on the bundle's golden rows; ParityError where they differ."""

    def infer(
        self, model: ServedModel, inputs: Arrays, *, timeout_s: float, lone_s: float | None = None
    ) -> Awaitable[dict[str, NDArray[np.generic]]]:
        """Run one collated batch; DeadlineError after `timeout_s` seconds.

        lone_s: of a single request, while nothing else runs or waits, so that it may take what others would need: the
        seconds that it will probably take, 0 where they are not known. None for all others.
        """

    async def close(self) -> None:
        """Release everything; nothing may be called afterwards."""
