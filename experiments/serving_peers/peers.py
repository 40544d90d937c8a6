"""The other serving tools: how each is started, and what each is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from experiments.environment import fresh
from experiments.servers import Server, free_port, serving
from experiments.serving_limit.study import Study
from registry.bundle import open_bundle
from serving.bench.queries import numbers
from serving.bench.traffic import post, rank_body, requests, understand_body

SERVERS = Path(__file__).parent / "servers"
UNDERSTAND, RANK = "understand", "rank"

_POOL = 64
_FAR = 10_000_000


class Peer:
    """One tool with its environment: `start` runs it with settings, `sent` gives requests as it wants them."""

    def __init__(self, name: str, study: Study) -> None:
        self.name = name
        self._study = study
        self._python = fresh(study.environments / name, study.config["peers"][name]["requirements"])

    def start(self, scenario: str, settings: dict[str, Any]) -> AbstractContextManager[Server]:
        """Start it and wait until it answers."""
        bundles = {"intent": str(self._study.intent), "ranker": str(self._study.ranker), "scenario": scenario}
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        directory = self._study.workspace / "peers" / self.name
        environment = {
            "PEER": json.dumps(settings | bundles),
            "PYTHONPATH": str(SERVERS),
            "OMP_NUM_THREADS": str(settings["threads"]),
            "BENTOML_HOME": str(directory / "home"),
            "BENTOML_DO_NOT_TRACK": "True",
        }
        command = _COMMANDS[self.name](self._python, port, scenario, settings, directory)
        probe = next(self.sent(scenario, url, first=_FAR))
        return serving(command, url, probe, directory / "log", cwd=SERVERS, environment=environment)

    def sent(self, scenario: str, url: str, first: int = 0) -> Iterator[bytes]:
        """Requests without end, none twice."""
        path, body = _ASKED[self.name, scenario](self._study)
        return requests(post(url, path, lambda number: body(number + first)), numbers(0))


def _litserve(python: Path, port: int, _scenario: str, _settings: dict[str, Any], _directory: Path) -> list[str]:
    return [str(python), str(SERVERS / "litserve_server.py"), str(port)]


def _mlserver(python: Path, port: int, scenario: str, settings: dict[str, Any], directory: Path) -> list[str]:
    """Write its two files of settings; its own ports for gRPC and metrics are free ones."""
    model = directory / scenario / "model"
    model.mkdir(parents=True, exist_ok=True)
    server = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "metrics_endpoint": None,
        "parallel_workers": settings["workers"],
        "debug": False,
    }
    described = {
        "name": scenario,
        "implementation": f"mlserver_model.{scenario.capitalize()}",
        "max_batch_size": settings["batch"],
        "max_batch_time": settings["wait_ms"] / 1e3,
    }
    (directory / scenario / "settings.json").write_text(json.dumps(server))
    (model / "model-settings.json").write_text(json.dumps(described))
    return [str(python.parent / "mlserver"), "start", str(directory / scenario)]


def _bentoml(python: Path, port: int, scenario: str, _settings: dict[str, Any], _directory: Path) -> list[str]:
    service = f"bentoml_service:{scenario.capitalize()}"
    return [str(python.parent / "bentoml"), "serve", service, "--host", "127.0.0.1", "--port", str(port)]


_COMMANDS: dict[str, Callable[[Path, int, str, dict[str, Any], Path], list[str]]] = {
    "litserve": _litserve,
    "mlserver": _mlserver,
    "bentoml": _bentoml,
}

Body = Callable[[int], bytes]


def _text_tensor(study: Study) -> Body:
    tensor = b'{"name":"query","shape":[1,1],"datatype":"BYTES","parameters":{"content_type":"str"},"data":[%b]}'
    return lambda number: b'{"inputs":[%b]}' % (tensor % json.dumps(study.text(number)).encode())


def _texts(study: Study) -> Body:
    return lambda number: b'{"texts":[%b]}' % json.dumps(study.text(number)).encode()


def _rows(study: Study) -> Body:
    """The gateway's own rows without the query."""
    names = open_bundle(study.ranker).manifest.features or ()
    body = rank_body(study.text, names, (study.config["rank"]["list_size"],), form="rows", seed=0)
    return lambda number: body(number).rpartition(b',"query":')[0] + b"}"


def _matrix(study: Study) -> Body:
    """Features as a flat list in the model's order."""
    n_features, size = len(open_bundle(study.ranker).manifest.features or ()), study.config["rank"]["list_size"]
    generator = np.random.default_rng(0)
    pool = [
        json.dumps(generator.random(size * n_features).round(6).tolist()[1:], separators=(",", ":")).encode()[1:]
        for _ in range(_POOL)
    ]
    start = f'{{"inputs":[{{"name":"features","shape":[{size},{n_features}],"datatype":"FP32","data":['.encode()
    return lambda number: b"%b%.6f,%b}]}" % (start, number % 1_000_000 / 1_000_000, pool[number % _POOL])


_ASKED: dict[tuple[str, str], Callable[[Study], tuple[str, Body]]] = {
    ("litserve", UNDERSTAND): lambda study: ("/predict", understand_body(study.text)),
    ("litserve", RANK): lambda study: ("/predict", _rows(study)),
    ("mlserver", UNDERSTAND): lambda study: ("/v2/models/understand/infer", _text_tensor(study)),
    ("mlserver", RANK): lambda study: ("/v2/models/rank/infer", _matrix(study)),
    ("bentoml", UNDERSTAND): lambda study: ("/understand", _texts(study)),
    ("bentoml", RANK): lambda study: ("/rank", _rows(study)),
}
