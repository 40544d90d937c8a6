"""How urgent a request is and how long it may take, by its own parameters `priority` and `timeout`.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_schedule_policy.md
"""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import InputError
from serving.gateway import batcher
from serving.gateway.config import GatewayConfig

HIGHEST = 1
"""The priority of what somebody waits for; lower ones, which are larger numbers, are all bulk work."""
_US_A_MS, _MS_A_SECOND = 1e3, 1e3


@dataclass(frozen=True, slots=True)
class Schedule:
    """What a request says of itself; 0: nothing. timeout_us: microseconds after which nobody waits for it any more."""

    priority: int = 0
    timeout_us: int = 0

    def __post_init__(self) -> None:
        for name, value in (("priority", self.priority), ("timeout", self.timeout_us)):
            if value < 0:
                raise InputError(
                    f"parameters.{name} must be 0 or more, got {value}; correct it or leave it out",
                    field=f"parameters.{name}",
                )

    def begin(self, begun_s: float, told_s: float | None, config: GatewayConfig) -> float:
        """Give the deadline of a request that began at `begun_s`, and from here on its priority to what works on it.

        told_s: the deadline that its call has, None where it says nothing. A timeout stands in for the configured
        deadline, and is at most `max_deadline_ms`.
        """
        if self.priority:
            batcher.priority.set("interactive" if self.priority == HIGHEST else "bulk")
        if told_s is not None and not self.timeout_us:
            return told_s
        allowed_ms = config.deadline_ms
        if self.timeout_us:
            allowed_ms = min(self.timeout_us, config.max_deadline_ms * _US_A_MS) / _US_A_MS
        deadline_s = begun_s + allowed_ms / _MS_A_SECOND
        return deadline_s if told_s is None else min(told_s, deadline_s)
