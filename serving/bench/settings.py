"""What `rankyard bench` is asked for. A setting that does nothing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from models.config import Config, validate
from models.errors import InputError

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_NEEDS: dict[str, tuple[str, str]] = {
    "arrivals": ("is_open", "--rate or --rates"),
    "connections": ("is_open", "--rate or --rates"),
    "distinct": ("is_zipf", "--zipf"),
    "picture": ("is_sweep", "--rates"),
    "list_sizes": ("is_ranking", "--scenario rank or mixed"),
    "form": ("is_ranking", "--scenario rank or mixed"),
    "features": ("is_ranking", "--scenario rank or mixed"),
    "texts": ("is_ranking", "--scenario rank or mixed"),
    "top_k": ("is_ranking", "--scenario rank or mixed"),
    "rank_share": ("is_mixed", "--scenario mixed"),
}
_NOT_BINARY = ("features", "texts", "top_k")
_LOADS = ("concurrency", "rate", "rates")


class Settings(Config):
    """One run.

    url: the gateway. ca_file: who may sign for an https one. scenario: what is asked. concurrency: closed loop of so
    many callers, each waiting for its answer. rate: open loop of so many requests a second; rates: one open loop after
    the other. arrivals: of an open loop. seconds, warmup_seconds: of each loop. connections: that an open loop may have
    open. zipf: exponent with which queries repeat, among `distinct`; left out, no query comes twice. queries: a file,
    one a line, instead of generated ones. list_sizes: candidates of a request, in turn. form: of the candidates.
    features: names (None: the model's). texts: whether candidates have one. top_k: how many are answered. rank_share:
    of the requests of `mixed`. p99_limit_ms: what goodput is about. deadline_ms: told to the gateway with every request
    (None: its own default). out, picture, compare: files to write the result and the picture to, and an earlier result.
    """

    url: str = "http://127.0.0.1:8080"
    ca_file: Path | None = None
    scenario: Literal["understand", "rank", "mixed"] = "understand"
    concurrency: Count = 16
    rate: Positive | None = None
    rates: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    arrivals: Literal["poisson", "constant"] = "poisson"
    seconds: Positive = 10.0
    warmup_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    connections: Count = 512
    zipf: Positive | None = None
    distinct: Count = 100_000
    queries: Path | None = None
    list_sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (100,)
    form: Literal["rows", "columns", "arrow", "binary"] = "columns"
    features: tuple[str, ...] | None = None
    texts: bool = False
    top_k: Count | None = None
    rank_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    p99_limit_ms: Positive = 50.0
    deadline_ms: Positive | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    out: Path | None = None
    picture: Path | None = None
    compare: Path | None = None

    @property
    def is_open(self) -> bool:
        """Whether requests are due by the clock."""
        return self.rate is not None or self.is_sweep

    @property
    def is_sweep(self) -> bool:
        """Whether several rates are tried."""
        return self.rates is not None

    @property
    def is_zipf(self) -> bool:
        """Whether queries repeat."""
        return self.zipf is not None

    @property
    def is_ranking(self) -> bool:
        """Whether candidates are sent."""
        return self.scenario != "understand"

    @property
    def is_binary(self) -> bool:
        """Whether candidates are sent as tensors, which have features alone."""
        return self.form == "binary"

    @property
    def is_mixed(self) -> bool:
        """Whether both questions are asked."""
        return self.scenario == "mixed"

    def load(self) -> dict[str, Any]:
        """Everything that decides what a result can be compared with."""
        files = {"url", "ca_file", "out", "picture", "compare"}
        given: dict[str, Any] = self.model_dump(mode="json", exclude=files)
        return {"loop": "open"} | given if self.is_open else {"loop": "closed"} | given


def settings(given: dict[str, Any]) -> Settings:
    """Check what was given; one InputError says what is wrong, or what would do nothing."""
    checked = validate(Settings, given)
    loads = [name for name in _LOADS if name in given]
    if len(loads) > 1:
        raise InputError(f"a load is given by one of --concurrency, --rate and --rates, got {' and '.join(loads)}")
    for name in _NOT_BINARY:
        if checked.is_binary and name in given:
            raise InputError(f"--{name.replace('_', '-')} does nothing with --form binary; leave one of them out")
    for name, (condition, wanted) in _NEEDS.items():
        if name in given and not getattr(checked, condition):
            raise InputError(f"--{name.replace('_', '-')} does nothing without {wanted}; give that too or leave it out")
    if checked.rates is not None and list(checked.rates) != sorted(set(checked.rates)):
        shown = ",".join(f"{rate:g}" for rate in checked.rates)
        raise InputError(f"--rates must rise, got {shown}; give each once, the lowest first")
    return checked
