"""`rankyard tune triton`: measure schedulings on a real server, keep the best, write it into the model repository."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure

from models.errors import RankyardError
from registry.deployment import Resolved, resolve
from registry.workspace import Workspace
from serving.bench import files, queries
from serving.bench.arrivals import POISSON, arrivals
from serving.bench.load import Plan, closed_loop, open_loop
from serving.triton import kept, server
from serving.triton.config import largest_batch
from serving.triton.http import TritonHttp
from serving.triton.kept import Kept
from serving.triton.repository import CONFIG, Deployed, deploy, install
from serving.triton.settings import Scheduling, TritonSettings
from serving.triton.tuning.picture import throughput_over_p99
from serving.triton.tuning.search import Figures, Final, Found, Search
from serving.triton.tuning.settings import SweepSettings, space
from serving.triton.tuning.tables import points_csv, summary
from serving.triton.tuning.traffic import Traffic

EXPERIMENT = "triton"

_CONNECTIONS = 512
_DRAIN_S = 10.0
_SIZES = {"ranking": 100}


class Record(Protocol):
    """Where a sweep is recorded; `registry.run.Run` is one."""

    id: str

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log what was asked for."""

    def metrics(self, values: Mapping[str, float]) -> None:
        """Log what was found."""

    def text(self, text: str, name: str) -> None:
        """Store a text file."""

    def figure(self, figure: Figure, name: str) -> None:
        """Store a picture."""

    def describe(self, markdown: str) -> None:
        """Say in a few lines what was found."""


@dataclass(frozen=True, slots=True)
class Order:
    """name: the model, whose champion is measured. repository: where the result is written.

    triton_url: a running server of that repository, on which is measured too; None: on one of its own.
    """

    name: str
    sweep: SweepSettings
    settings: TritonSettings
    repository: Path
    triton_url: str | None = None


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was found, what was kept of it (None: the default), and the version that was deployed so."""

    order: Order
    target: str
    found: Found
    kept: Kept | None
    deployed: Deployed
    run_id: str
    seconds: float

    def answer(self) -> dict[str, Any]:
        """Everything as JSON, and `text` for people."""
        found = self.found
        return {
            "name": self.deployed.name,
            "version": self.deployed.version,
            "target": self.target,
            "p99_limit_ms": self.order.sweep.p99_ms,
            "load": self.order.sweep.load_name,
            "beats_default": found.beats_default,
            "gain": None if found.gain is None else round(found.gain, 4),
            "scheduling": found.chosen.scheduling.model_dump(mode="json"),
            "best": _final(found.best),
            "default": None if found.default is None else _final(found.default),
            "finals": [_final(final) for final in found.finals],
            "points": [
                {"scheduling": point.scheduling.model_dump(mode="json"), "load": point.load, **point.figures}
                for point in found.points
            ],
            "failures": [
                {"scheduling": scheduling.model_dump(mode="json"), "reason": reason}
                for scheduling, reason in found.failures.items()
            ],
            "kept": self.kept is not None,
            "path": str(self.deployed.path),
            "ready": self.deployed.is_ready,
            "run_id": self.run_id,
            "seconds": round(self.seconds, 2),
            "text": self.text(),
        }

    def text(self) -> str:
        """The table, the verdict, and what becomes of it."""
        ready = ", loaded and proved" if self.deployed.is_ready else ""
        after = "kept for every later deploy" if self.kept is not None else "the default stays"
        return f"{summary(self.found, self.order.sweep)}\n{after}; written to {self.deployed.path.parent}{ready}"


def tune(order: Order, workspace: Workspace, record: Record, say: Callable[[str], None]) -> Tuned:
    """Measure, keep and deploy. RefusedError where nothing holds the limit: nothing is written then.

    What an earlier sweep found is measured again beside the rest, and forgotten where the default is as good.
    """
    begun_s = time.monotonic()
    resolved = resolve(workspace.deployment, f"{order.name}@champion")
    of = kept.target(resolved.bundle, order.settings)
    earlier = kept.read(workspace.deployment, order.name, of)
    n_cores = len(os.sched_getaffinity(0))
    record.parameters(_parameters(order, resolved, of, n_cores))
    with workspace.lock("tune triton"), _server(order, workspace) as (http, repository):
        found = _search(order, resolved, http, repository, n_cores, say).run(
            None if earlier is None else earlier.scheduling
        )
    result = _keep(workspace.deployment, order, resolved, of, found, n_cores, record.id)
    (deployed,) = deploy(
        workspace.deployment, [order.name], order.repository, order.settings, _url_after(order, workspace)
    )
    tuned = Tuned(order, of, found, result, deployed, record.id, time.monotonic() - begun_s)
    _record(tuned, record)
    return tuned


class _Bench:
    """Puts load on the model, which is loaded anew, and proved, for every scheduling."""

    def __init__(
        self, order: Order, resolved: Resolved, http: TritonHttp, repository: Path, url: str, traffic: Traffic
    ) -> None:
        self._order = order
        self._bundle = resolved.bundle
        self._place = (http, repository, trial_name(order.name), resolved.version)
        self._url = url
        self._requests = traffic.requests(url, trial_name(order.name), resolved.version)
        self._loaded: Scheduling | None = None

    def measure(self, scheduling: Scheduling, load: float) -> Figures:
        """One loop."""
        if scheduling != self._loaded:
            self._loaded = None
            install(*self._place, self._bundle, self._order.settings.model_copy(update=dict(scheduling)))
            self._loaded = scheduling
        sweep = self._order.sweep
        is_open = sweep.rates is not None
        n_connections = _CONNECTIONS if is_open else int(load)
        plan = Plan(sweep.seconds, sweep.warmup_seconds, n_connections, _DRAIN_S, sweep.p99_ms)
        if is_open:
            found = open_loop(self._url, self._requests, arrivals(POISSON, load, sweep.seed), plan)
        else:
            found = closed_loop(self._url, self._requests, plan)
        return {key: value for key, value in found.figures().items() if key != "histogram"}


def trial_name(name: str) -> str:
    """Under which a model is loaded to be measured, beside the one that is served."""
    return f"{name}-tuning"


def _search(
    order: Order, resolved: Resolved, http: str, repository: Path, n_cores: int, say: Callable[[str], None]
) -> Search:
    sweep, bundle = order.sweep, resolved.bundle
    lines = None if sweep.queries is None else files.lines(sweep.queries)
    text = queries.generated(sweep.seed) if lines is None else queries.of_file(lines, sweep.seed)
    size = sweep.size or _SIZES.get(bundle.manifest.family, 1)
    traffic = Traffic(bundle, text, size, order.settings, sweep.seed)
    tried = space(
        sweep,
        n_cores=n_cores,
        needs_gpu=order.settings.needs_gpu,
        n_rows=traffic.n_rows,
        max_rows=largest_batch(bundle.manifest.signature, order.settings),
    )
    bench = _Bench(order, resolved, TritonHttp(http), repository, http, traffic)
    return Search(bench.measure, tried, sweep.trials, sweep.repeats, sweep.seed, say)


@contextmanager
def _server(order: Order, workspace: Workspace) -> Iterator[tuple[str, Path]]:
    """Give a server's HTTP address and repository: the one that was named, or one for this sweep alone."""
    trial = trial_name(order.name)
    if order.triton_url is not None:
        http = TritonHttp(order.triton_url)
        http.expect_live()
        try:
            yield _url(order.triton_url), order.repository
        finally:
            with suppress(RankyardError):
                http.unload(trial)
            shutil.rmtree(order.repository / trial, ignore_errors=True)
        return
    directory = workspace.open().triton / "tuning"
    repository = directory / "repository"
    try:
        shutil.rmtree(repository, ignore_errors=True)
        yield _url(server.up(directory, repository).http), repository
    finally:
        server.down(directory)
        shutil.rmtree(repository, ignore_errors=True)


def _url(address: str) -> str:
    return address if "://" in address else f"http://{address}"


def _url_after(order: Order, workspace: Workspace) -> str | None:
    """Where to load the result: on the server that was named, or the workspace's own where it has the repository."""
    if order.triton_url is not None:
        return order.triton_url
    running = server.status(workspace.triton)
    if running is not None and Path(running.repository) == order.repository.absolute():
        return running.http
    return None


def _keep(
    deployment: Path, order: Order, resolved: Resolved, of: str, found: Found, n_cores: int, run_id: str
) -> Kept | None:
    """Keep the best where it beats the default; otherwise nothing, whatever was kept before."""
    if not found.beats_default:
        kept.forget(deployment, order.name, of)
        return None
    result = Kept(
        name=order.name,
        version=resolved.version,
        target=of,
        scheduling=found.best.scheduling,
        p99_limit_ms=order.sweep.p99_ms,
        throughput_per_s=round(found.best.throughput_per_s, 2),
        default_throughput_per_s=0.0 if found.default is None else round(found.default.throughput_per_s, 2),
        n_cores=n_cores,
        created=datetime.now(UTC),
        run_id=run_id,
    )
    kept.keep(deployment, result)
    return result


def _parameters(order: Order, resolved: Resolved, of: str, n_cores: int) -> dict[str, Any]:
    return {
        "model": f"{resolved.name}/{resolved.version}",
        "digest": resolved.bundle.digest,
        "target": of,
        "n_cores": n_cores,
        **order.sweep.model_dump(mode="json"),
    }


def _record(tuned: Tuned, record: Record) -> None:
    found = tuned.found
    figures = {"best": found.best, "default": found.default}
    record.metrics(
        {
            f"{who}.{key}": value
            for who, final in figures.items()
            if final is not None
            for key, value in _final(final).items()
            if key in ("throughput_per_s", "p50_ms", "p99_ms", "load")
        }
    )
    if found.gain is not None:
        record.metrics({"gain": found.gain})
    record.text(points_csv(found), "points.csv")
    record.text((tuned.deployed.path.parent / CONFIG).read_text(encoding="utf-8"), CONFIG)
    record.figure(throughput_over_p99(found, tuned.order.sweep), "throughput_over_p99")
    record.describe(f"```\n{tuned.text()}\n```")


def _final(final: Final) -> dict[str, Any]:
    return {
        "scheduling": final.scheduling.model_dump(mode="json"),
        "load": final.load,
        "throughput_per_s": round(final.throughput_per_s, 2),
        "p50_ms": final.p50_ms,
        "p99_ms": final.p99_ms,
        "rounds": list(final.rounds),
    }
