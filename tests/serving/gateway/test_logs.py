"""What a gateway writes to standard error, and what it never does."""

import asyncio
import gc
import json
import logging
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from serving.gateway import logs
from serving.gateway.config import LogsConfig
from tests.serving.gateway.conftest import start, url_of

ROOT = Path(__file__).parents[3]
SECRET = "zebra slippers"


@contextmanager
def logging_gateway(deployment, **config):
    """A client, and the lines that the gateway wrote, once it has ended."""
    process = start(deployment, {"logs": config})
    lines: list[str] = []
    url = url_of(process.stdout.readline())
    try:
        with httpx.Client(base_url=url, timeout=60) as client:
            yield client, lines
    finally:
        process.terminate()
        lines += process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 0


def ask_in_every_way(client):
    """Ask for SECRET where it is answered, where it is refused and where nothing is."""
    return [
        client.post("/v1/understand", json={"query": SECRET}),
        client.post("/v1/understand", json={"query": SECRET, "queries": [SECRET]}),
        client.post("/v1/understand", content=f'{{"query": "{SECRET}'),
        client.post(
            "/v1/rank", json={"query": {"text": SECRET}, "candidates": [{"id": SECRET, "features": {SECRET: 1}}]}
        ),
        client.get(f"/v1/{SECRET}"),
        client.get("/v1/understand", params={"query": SECRET}),
        client.post("/v1/understand", json={"query": "x"}, headers={"x-deadline-ms": SECRET, "x-request-id": SECRET}),
    ]


def test_every_request_is_a_line_of_json_with_the_id_that_its_caller_was_told(deployment):
    with logging_gateway(deployment, format="json", requests=True) as (client, lines):
        answers = ask_in_every_way(client)
    told = [json.loads(line) for line in lines]
    assert [line["request_id"] for line in told] == [answer.headers["x-request-id"] for answer in answers]
    assert [line["status"] for line in told] == [answer.status_code for answer in answers]
    assert {"time", "level", "logger", "message", "method", "ms", "body_bytes"} <= told[0].keys()
    assert (told[0]["route"], told[0]["method"]) == ("/v1/understand", "POST")
    assert len({line["request_id"] for line in told}) == len(told)


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_callers_ask_is_in_no_line_unless_it_is_wanted(deployment, style):
    with logging_gateway(deployment, format=style, requests=True, level="info") as (client, lines):
        ask_in_every_way(client)
    assert len(lines) >= 7
    assert "zebra" not in "\n".join(lines)
    with logging_gateway(deployment, format=style, requests=True, query_text=True) as (client, lines):
        ask_in_every_way(client)
    assert ["zebra" in line for line in lines] == [True] * 5 + [False] * 2


def test_a_log_of_json_is_nothing_but_json_from_its_first_line(deployment, tmp_path):
    (tmp_path / "gateway.yaml").write_text(f"deployment: {deployment}\nlogs: {{format: json}}\n")
    command = [sys.executable, "rankyard.py", "serve", "--port", "0", "--config", str(tmp_path / "gateway.yaml")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        first = process.stderr.readline()
        process.terminate()
        _, rest = process.communicate(timeout=60)
    told = [json.loads(line) for line in [first, *rest.splitlines()]]
    assert told[0]["message"].startswith("ready on http://127.0.0.1:")
    assert process.returncode == 0


def test_a_quiet_gateway_writes_nothing(deployment):
    with logging_gateway(deployment) as (client, lines):
        ask_in_every_way(client)
    assert lines == []


def test_a_callers_id_is_kept_and_what_is_none_is_replaced(client):
    def identity(given):
        return client.get("/healthz", headers={"x-request-id": given}).headers["x-request-id"]

    assert identity("shop-7f.3:A/b+c=_") == "shop-7f.3:A/b+c=_"
    for given in ("", "two words", "x" * 129, 'a"b'):
        assert identity(given) not in ("", given)
    assert client.get("/made/up").headers["x-request-id"]


def raise_quoting() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise ExceptionGroup(SECRET, [ValueError(SECRET), RuntimeError(SECRET)]) from error


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_traceback_says_where_and_of_what_kind_and_quotes_nothing(capsys, style):
    with logs.written(LogsConfig(format=style)):
        try:
            raise_quoting()
        except ExceptionGroup:
            logging.getLogger("rankyard.gateway").exception("a request to %s failed", "/v1/understand")
    said = capsys.readouterr().err
    assert "zebra" not in said
    for word in ("KeyError", "ExceptionGroup", "ValueError", "RuntimeError", "in raise_quoting", "/v1/understand"):
        assert word in said
    with logs.written(LogsConfig(format=style, query_text=True)):
        try:
            raise_quoting()
        except ExceptionGroup:
            logging.getLogger("rankyard.gateway").exception("failed")
    assert "zebra" in capsys.readouterr().err


def test_a_task_that_nobody_awaited_quotes_nothing(capsys):
    async def fail():
        raise ValueError(SECRET)

    async def forget():
        task = asyncio.get_running_loop().create_task(fail())
        await asyncio.wait([task])

    with logs.written(LogsConfig()):
        asyncio.run(forget())
        gc.collect()
    said = capsys.readouterr().err
    assert "Task exception was never retrieved" in said
    assert "ValueError" in said
    assert "zebra" not in said


def test_the_log_is_left_as_it_was(capsys):
    log = logging.getLogger("rankyard.gateway")
    with logs.written(LogsConfig(level="info")):
        log.info("within")
    log.info("after")
    said = capsys.readouterr().err
    assert "within" in said
    assert "after" not in said
