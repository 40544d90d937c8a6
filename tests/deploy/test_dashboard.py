"""The dashboard and the rules against what a real gateway tells a real Prometheus, and Grafana's own types."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from registry.deployment import Published, publish
from tests.bundles import tiny_bundle
from tests.serving.gateway.conftest import gateway
from tests.serving.gateway.metrics import samples

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "gateway.json").read_text())
VARIABLES = {"$job": "rankyard", "$model": ".*", "$__rate_interval": "5s"}
FAMILY = re.compile(r"_(bucket|sum|count)$")


def expressions() -> dict[str, str]:
    """Every expression of the dashboard by its panel, its variables filled in."""
    found = {}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            assert "$" not in expression
            found[f"{panel['title']} {target['refId']}"] = expression
    return found


@pytest.fixture(scope="module")
def deployment(tmp_path_factory) -> Path:
    """An intent model and a ranker."""
    directory, bundles = tmp_path_factory.mktemp("deployment"), tmp_path_factory.mktemp("bundles")
    publish(directory, "shop-query", {"champion": Published("3", tiny_bundle(bundles, "intent"))})
    publish(directory, "shop-ltr", {"champion": Published("2", tiny_bundle(bundles, "ranking"))})
    return directory


@pytest.fixture(scope="module")
def told(deployment) -> Iterator[httpx.Client]:
    """A gateway of two processes, which tells all that one tells, and of its processes."""
    with gateway(deployment, {"processes": 2, "deadline_ms": 30_000}) as client:
        yield client


@pytest.fixture(scope="module")
def prometheus(told, tmp_path_factory) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes the gateway every half second, with the rules."""
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus here (Debian: prometheus)")
    directory = tmp_path_factory.mktemp("prometheus")
    target = f"{told.base_url.host}:{told.base_url.port}"
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "scrape_configs": [{"job_name": "rankyard", "static_configs": [{"targets": [target]}]}],
        "rule_files": [str(directory / "rules.yml")],
    }
    rules = yaml.safe_load((DEPLOY / "prometheus.rules.yml").read_text())
    for group in rules["groups"]:
        group.pop("interval", None)  # the file's own would be half a minute of waiting
    (directory / "rules.yml").write_text(yaml.safe_dump(rules))
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        "prometheus",
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
    with (directory / "log").open("w") as log, running(command, log), client:
        yield client


@contextmanager
def running(command: list[str], log: Any) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


def asked(told: httpx.Client) -> None:
    told.post("/v1/understand", json={"query": f"red shoes {time.monotonic()}"})
    told.post("/v1/rank", json={"query": {"text": "shoes"}, "candidates": [{"id": "a", "features": {"price": 1.0}}]})


def test_a_prometheus_that_scrapes_a_gateway_answers_every_panel(told, prometheus):
    unanswered = dict.fromkeys(expressions(), "not asked")
    until = time.monotonic() + 120
    while unanswered:
        asked(told)
        for panel in list(unanswered):
            try:
                answer = prometheus.get("/api/v1/query", params={"query": expressions()[panel]}).json()
            except (httpx.TransportError, json.JSONDecodeError) as error:  # it is still starting
                unanswered[panel] = repr(error)
                break
            assert answer["status"] == "success", (panel, answer)
            unanswered[panel] = str(answer["data"])
            if answer["data"]["result"]:
                del unanswered[panel]
        assert time.monotonic() < until, unanswered


def test_the_rules_read_what_a_gateway_tells(told, prometheus):
    until = time.monotonic() + 120
    wanted = {f"job:rankyard_{what}:ratio_rate5m" for what in ("errors", "late")}
    while wanted:
        asked(told)
        assert time.monotonic() < until, wanted
        try:
            for name in list(wanted):
                result = prometheus.get("/api/v1/query", params={"query": f"{name} >= 0"}).json()["data"]["result"]
                wanted -= {name} if result else set()
        except (httpx.TransportError, json.JSONDecodeError):
            continue
    while alerts := dict(alarmed(prometheus)):  # one scrape that came too late makes an alert wait, not come
        assert time.monotonic() < until, alerts


def alarmed(prometheus: httpx.Client) -> Iterator[tuple[str, str]]:
    """Alerts that are more than inactive, but those of late answers, which are right on a busy machine."""
    for group in prometheus.get("/api/v1/rules").json()["data"]["groups"]:
        for rule in group["rules"]:
            assert rule["health"] in ("ok", "unknown"), rule
            if rule.get("state", "inactive") != "inactive" and not rule["name"].startswith("RankyardLate"):
                yield rule["name"], rule["state"]


def test_the_readme_lists_every_series_with_its_labels(told, deployment):
    listed = {}
    for line in (DEPLOY / "README.md").read_text().splitlines():
        if line.startswith("| `rankyard_"):
            name, labels, _ = (cell.strip() for cell in line.strip("|").split("|"))
            listed[name.strip("`")] = {label.strip() for label in labels.split(",")} - {""}
    asked(told)
    found = {}
    with gateway(deployment) as alone:
        told_by_one = samples(alone)
    for sample in [*samples(told), *told_by_one]:
        if sample.name.startswith("rankyard_"):
            found[FAMILY.sub("", sample.name)] = set(sample.labels) - {"le"}
    assert found == listed


def test_grafanas_own_types_know_every_field_of_the_dashboard():
    plugins.register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    assert list(differences(DASHBOARD, read)) == []


def differences(given: Any, read: Any, path: str = "") -> Iterator[str]:
    """Where something that was given is not there, or is another, once it was read."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            yield from differences(value, read.get(key), f"{path}.{key}")
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for index, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif given != read:
        yield f"{path}: {given!r} became {read!r}"


def test_no_panel_lies_on_another():
    cells = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & own, panel["title"]
        assert at["x"] + at["w"] <= 24
        cells |= own
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
