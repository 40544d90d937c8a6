"""What every part of the study works with: bundles, sizes, gateways, queries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import loops
from experiments.report import Row
from experiments.servers import Server, gateway
from serving.bench.queries import Text, numbers
from serving.bench.traffic import post, requests, understand_body

DATA = "understand, distinct queries"
EMBEDDED = "gateway, in process"


@dataclass(frozen=True, slots=True)
class Part:
    """What a part found: rows for the table, and everything else."""

    rows: list[Row]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Study:
    """config: config.yaml. environments: where other libraries are installed. text: queries by number."""

    config: dict[str, Any]
    intent: Path
    ranker: Path
    workspace: Path
    environments: Path
    text: Text

    @property
    def repetitions(self) -> int:
        """How often everything is measured."""
        return int(self.config["repetitions"])

    @property
    def n_cores(self) -> int:
        """Cores that this process may use."""
        return len(os.sched_getaffinity(0))

    def gateway(
        self, name: str, *, models: dict[str, str] | None = None, **more: Any
    ) -> AbstractContextManager[Server]:
        """Start the gateway that config.yaml calls `name`, on the study's intent model unless `models` says others."""
        config = {"models": models or {"intent": str(self.intent)}, **self.config["gateways"][name], **more}
        return gateway(config, self.workspace / "gateways", name)

    def queries(self, url: str, first: int = 0, text: Text | None = None) -> Iterator[bytes]:
        """Understand requests, none twice; two streams on one gateway begin far apart, or have texts of their own."""
        texts = text or self.text
        return requests(post(url, "/v1/understand", understand_body(lambda n: texts(n + first))), numbers(0))

    def closed(self, url: str, sent: Iterator[bytes], concurrency: int) -> dict[str, Any]:
        """Measure a closed loop of the study's length."""
        return loops.closed(url, sent, concurrency, self.config["seconds"], self.config["warmup_seconds"])

    def n_answered(self, figures: dict[str, Any]) -> float:
        """How many requests such a loop has answered, warm-up included."""
        answered: float = figures["throughput_per_s"] * (self.config["seconds"] + self.config["warmup_seconds"])
        return answered
