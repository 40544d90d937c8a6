"""A gateway for an hour: every kind of request, callers who go away, promotions; its memory and descriptors meanwhile.

python -m experiments.serving_soak.run [--minutes M]    writes results/soak.json and results/soak.png
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments import command
from experiments.report import Row, save
from experiments.servers import Server, exchange, gateway
from experiments.serving_soak.traffic import REFUSALS, Hangups, mixture
from models.model import open_model
from models.ranking import RankingModel
from registry.bundle import Bundle, open_bundle
from registry.deployment import Published, publish
from serving.bench.arrivals import arrivals
from serving.bench.load import Plan, open_loop
from training.demo_shop import generate

HERE = Path(__file__).parent
FLAT = 0.02
"""How far the memory of a minute may be from that of another one."""
N_CONNECTIONS = 64
_MODELS = b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n"
_PATIENCE_S = 15.0


def main() -> None:
    """Train, serve, ask for as long as is wanted, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text())
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        shop = generate(directory / "shop")
        names = {
            "shop-intent": trained(directory, "intent", shop.intent, config),
            "shop-ltr": trained(directory, "ranking", shop.ranking, config),
        }
        ranker = names["shop-ltr"][0]
        model: Any = open_model(ranker.path, ranker.manifest)
        promotions = Promotions(directory / "deployment", names, config["swap_every_s"])
        promotions.publish()
        settings = {"deployment": str(directory / "deployment"), **config["gateway"]}
        with gateway(settings, directory, "gateway") as server:
            result = soaked(server, model, promotions, config, options.minutes)
    rows = rows_of(result, options.minutes)
    for row in rows:
        print(f"{row.metric}: {row.value:g} ({'holds' if row.holds else 'MISSED'})")
    picture(result).savefig(HERE / "results" / "soak.png", dpi=120)
    result["minutes_mb"] = [round(one, 2) for one in minute_medians(result)]
    result["most_descriptors"] = max(sample["n_descriptors"] for sample in result.pop("samples"))
    command_line = f"python -m experiments.serving_soak.run --minutes {options.minutes:g}"
    save(HERE / "results" / "soak.json", rows, command_line, **result)


def trained(directory: Path, task: str, data: Path, config: Mapping[str, Any]) -> list[Bundle]:
    """Train a model for each of the settings that take turns."""
    return [
        open_bundle(Path(command.train(task, config[task]["config"], data, task, directory, [setting])["bundle"]))
        for setting in config[task]["settings"]
    ]


class Promotions(threading.Thread):
    """Publishes the models in turns, each time under a new version, and waits until the gateway serves it."""

    def __init__(self, deployment: Path, names: Mapping[str, Sequence[Bundle]], every_s: float) -> None:
        super().__init__(daemon=True)
        self._deployment, self._names, self._every_s = deployment, names, every_s
        self.url = ""
        self.stopping = threading.Event()
        self.version = 0
        self.n_missed = 0

    def publish(self) -> None:
        """Publish the next version of every model."""
        self.version += 1
        for name, bundles in self._names.items():
            version = Published(str(self.version), bundles[self.version % len(bundles)])
            publish(self._deployment, name, {"champion": version})

    def run(self) -> None:
        """Promote until told to stop."""
        while not self.stopping.wait(self._every_s):
            self.publish()
            self.n_missed += not self._is_followed()

    def _is_followed(self) -> bool:
        until = time.monotonic() + _PATIENCE_S
        wanted = {f"{name}/{self.version}" for name in self._names}
        while time.monotonic() < until:
            if {model["ref"] for model in json.loads(exchange(self.url, _MODELS)[1])["models"]} == wanted:
                return True
            self.stopping.wait(0.1)
        return False


class Samples(threading.Thread):
    """Looks at the gateway's process every few seconds."""

    def __init__(self, server: Server, every_s: float) -> None:
        super().__init__(daemon=True)
        self._server, self._every_s = server, every_s
        self.stopping = threading.Event()
        self.taken: list[dict[str, float]] = []

    def run(self) -> None:
        """Sample until told to stop."""
        begin_s = time.monotonic()
        while not self.stopping.wait(self._every_s):
            server = self._server
            found = {"rss_mb": server.rss_bytes / 1e6, "n_descriptors": server.n_descriptors, "cpu_s": server.cpu_s}
            self.taken.append({"at_s": round(time.monotonic() - begin_s, 1), **found})
            if len(self.taken) % round(60 / self._every_s) == 0:
                print(f"  {self.taken[-1]}", file=sys.stderr, flush=True)


def soaked(
    server: Server, model: RankingModel, promotions: Promotions, config: Mapping[str, Any], minutes: float
) -> dict[str, Any]:
    """Everything at once, and what was found."""
    promotions.url = server.url
    idle_before = server.n_descriptors
    samples = Samples(server, config["sample_s"])
    hangups = Hangups(server.url, mixture(server.url, list(model.sent), config), config["hangup_every_s"])
    threads = (promotions, samples, hangups)
    for thread in threads:
        thread.start()
    plan = Plan(seconds=60 * minutes, warmup_s=1.0, n_connections=N_CONNECTIONS)
    sent = mixture(server.url, list(model.sent), config)
    found = open_loop(server.url, sent, arrivals("poisson", config["rate_per_s"], 3), plan).figures()
    for thread in threads:
        thread.stopping.set()
    for thread in threads:
        thread.join()
    found.pop("histogram")
    return {
        "minutes": minutes,
        "warmup_minutes": minutes * config["warmup_share"],
        "promotions": promotions.version - 1,
        "promotions_missed": promotions.n_missed,
        "hangups": hangups.n_hangups,
        "descriptors_idle": [idle_before, _idle_descriptors(server, idle_before)],
        "load": found,
        "samples": samples.taken,
    }


def _idle_descriptors(server: Server, wanted: int) -> int:
    """Descriptors once the connections are gone: the gateway needs a moment to close its ends."""
    until = time.monotonic() + _PATIENCE_S
    while server.n_descriptors > wanted and time.monotonic() < until:
        time.sleep(0.1)
    return server.n_descriptors


def minute_medians(result: Mapping[str, Any]) -> list[float]:
    """Median memory of every minute after the warm-up, in MB."""
    minutes: dict[int, list[float]] = {}
    for sample in result["samples"]:
        after_s = sample["at_s"] - 60 * result["warmup_minutes"]
        if after_s >= 0:
            minutes.setdefault(int(after_s // 60), []).append(sample["rss_mb"])
    return [statistics.median(found) for found in minutes.values()]


def rows_of(result: Mapping[str, Any], minutes: float) -> list[Row]:
    """Turn what was found into rows."""
    medians = minute_medians(result)
    tenth = max(1, len(medians) // 10)
    growth = statistics.median(medians[-tenth:]) / statistics.median(medians[:tenth]) - 1
    level = statistics.median(medians)
    distance = max(abs(one / level - 1) for one in medians)
    before, after = result["descriptors_idle"]
    failed = sum(n for kind, n in result["load"]["errors"].items() if kind not in REFUSALS)
    load = f"{minutes:g} minutes, {result['load']['requests']} requests, {result['promotions']} promotions"

    def row(metric: str, value: float, target: float) -> Row:
        return Row(
            data=load,
            configuration="gateway, in process",
            metric=metric,
            value=round(value, 4),
            low=round(value, 4),
            high=round(value, 4),
            seeds=[0],
            seconds=60 * minutes,
            served_as="float32",
            target=target,
            at_most=True,
        )

    return [
        row("resident memory, last tenth over first tenth after the warm-up, minus 1", growth, FLAT),
        row("resident memory, the minute after the warm-up that is furthest from their median", distance, FLAT),
        row("descriptors more than at the start, when all callers have gone", after - before, 0),
        row("requests failed", failed, 0),
        row("promotions not followed", result["promotions_missed"], 0),
    ]


def picture(result: Mapping[str, Any]) -> Any:
    """Memory and descriptors over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    samples = result["samples"]
    minutes = [sample["at_s"] / 60 for sample in samples]
    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")
    level = statistics.median(minute_medians(result))
    above.plot(minutes, [sample["rss_mb"] for sample in samples], lw=0.9, color="#2b6cb0")
    above.axhspan(level * (1 - FLAT), level * (1 + FLAT), color="#a0aec0", alpha=0.4, label=f"± {FLAT:.0%}")
    above.axvline(result["warmup_minutes"], color="#718096", lw=0.8, ls="--", label="warm-up ends")
    above.set(ylabel="resident memory, MB", ylim=(0, None))
    above.legend(fontsize=8, loc="lower right")
    below.plot(minutes, [sample["n_descriptors"] for sample in samples], lw=0.9, color="#2f855a")
    below.set(ylabel="descriptors", xlabel="minutes", ylim=(0, None), xlim=(0, None))
    return figure


if __name__ == "__main__":
    main()
