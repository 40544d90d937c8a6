"""The whole line on the built-in demo shop, told as a short story of commands that a person could type."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.errors import RankyardError, UnavailableError
from registry.workspace import Workspace
from training import demo_shop

Call = Callable[[Sequence[str]], dict[str, Any]]
"""Runs one command in this process: its arguments in, its answer out."""

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0
_DEADLINE_MS = "30000"
"""The most that a gateway allows by default: the first answers of a cold one may take their time."""
_EPOCHS = 3


def write_data(directory: Path) -> dict[str, Any]:
    """Write the demo shop's files alone: catalogue, queries, ranking lists, click log."""
    shop = demo_shop.generate(directory)
    return {"directory": str(directory), **shop.counts(), "text": f"the demo shop is in {directory}: {_counts(shop)}"}


def run(workspace: Workspace, call: Call) -> dict[str, Any]:
    """Run the line from generated data to three answered queries; the gateway it starts is ended before it returns."""
    started = time.monotonic()
    data = workspace.root / "demo"
    story = _Story(workspace, call)

    story.chapter("A shop: catalogue, labelled queries, judged lists and a click log, all generated")
    shop = demo_shop.generate(data)
    story.say(_counts(shop))
    spoilt = demo_shop.spoil(data / "intent", workspace.root / "demo-spoilt")

    story.chapter("A linear intent model, and its promotion: the first champion of `shop-query`")
    story.train("intent", "intent_linear", data / "intent", "shop-query")
    story.promote("shop-query", expected=None)  # a second run meets a better champion, and is refused

    story.chapter("A model deliberately spoilt: most of its labels are wrong. The gates must refuse it")
    story.train("intent", "intent_linear", spoilt, "shop-query")
    refused = story.promote("shop-query", expected="refused")

    story.chapter("A transformer that answers intent and entities in one forward pass; the gates compare it")
    story.train("tagging", "joint_transformer", data / "queries", "shop-query", f"training.epochs={_EPOCHS}")
    better = story.promote("shop-query")

    story.chapter("A LambdaMART ranker for the result list")
    story.train("ranking", "ranking_xgboost", data / "ranking", "shop-ltr", "training.learning_rate=0.1")
    story.promote("shop-ltr")

    story.chapter("The gateway, and three questions over HTTP")
    with _gateway(workspace, story.say) as url:
        answers = [story.ask(url, "/v1/understand", {"query": query}) for query in demo_shop.sample_queries()]
        story.ask(url, "/v1/rank", demo_shop.sample_ranking(data))

    seconds = time.monotonic() - started
    story.chapter(f"Done in {seconds:.0f} s. Where to look next")
    where = f" --workspace {shlex.quote(str(workspace.root))}"
    story.say(f"rankyard ui{where}       runs, curves, pictures, models and promotions in MLflow")
    story.say(f"rankyard serve{where}    the gateway; its documentation is at /docs")
    story.say(f"rankyard models{where}   every model with its versions and roles")
    story.say(f"{workspace.root}   everything that this run wrote")
    return {"seconds": round(seconds, 1), "promoted": better, "refused": refused, "answers": answers}


class _Story:
    """Says each command before it runs it, and what came of it."""

    def __init__(self, workspace: Workspace, call: Call) -> None:
        self._workspace = workspace
        self._call = call
        self._chapter = 0

    def say(self, line: str) -> None:
        print(f"   {line}", file=sys.stderr, flush=True)  # noqa: T201 - the story is told on the terminal

    def chapter(self, title: str) -> None:
        self._chapter += 1
        print(f"\n{self._chapter}. {title}", file=sys.stderr, flush=True)  # noqa: T201

    def command(self, *arguments: str) -> dict[str, Any]:
        self.say(f"$ rankyard {shlex.join(arguments)}")
        return self._call([*arguments, "--workspace", str(self._workspace.root)])

    def train(self, task: str, config: str, data: Path, name: str, *overrides: str) -> None:
        settings = [part for override in overrides for part in ("--set", override)]
        answer = self.command("train", task, "--config", config, "--data", str(data), "--name", name, *settings)
        for line in answer["text"].splitlines():
            self.say(line)

    def promote(self, name: str, expected: str | None = "promoted") -> dict[str, Any]:
        answer = self.command("promote", name)
        for line in answer["text"].splitlines():
            self.say(line)
        if expected not in (None, answer["decision"]):
            raise RankyardError(f"the demo expects {name} to be {expected}, it was {answer['decision']}")
        return {key: answer[key] for key in ("name", "version", "decision")}

    def ask(self, url: str, route: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - a loopback address of our own
            url + route, json.dumps(body).encode(), {"content-type": "application/json", "x-deadline-ms": _DEADLINE_MS}
        )
        shown = json.dumps(body)
        self.say(f"POST {route} {shown if len(shown) < _WIDE else shown[:_WIDE] + ' …'}")
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            answer: dict[str, Any] = json.load(response)
        shown = json.dumps(answer)
        self.say(f"  {shown if len(shown) < 3 * _WIDE else shown[: 3 * _WIDE] + ' …'}")
        return answer


_WIDE = 160
"""Characters of a request that are shown; answers get three times as many."""


@contextmanager
def _gateway(workspace: Workspace, say: Callable[[str], None]) -> Iterator[str]:
    """Start `rankyard serve` on a free port, give its address, end it with SIGTERM."""
    arguments = ["serve", "--port", "0", "--workspace", str(workspace.root)]
    say(f"$ rankyard {shlex.join(arguments)}")
    log = workspace.root / "demo-gateway.log"
    with log.open("w+", encoding="utf-8") as output:
        process = subprocess.Popen([sys.executable, "-m", "rankyard", *arguments], stdout=output, stderr=output)  # noqa: S603
        try:
            yield _address(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    give_up_at = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < give_up_at and process.poll() is None:
        for word in log.read_text(encoding="utf-8").split():
            if word.startswith("http://"):
                return word.rstrip(",")
        time.sleep(0.05)
    said = " ".join(log.read_text(encoding="utf-8").split())
    raise UnavailableError(f"the gateway must be ready within {_START_TIMEOUT_S:.0f} s, its log says: {said}")


def _counts(shop: demo_shop.DemoShop) -> str:
    return ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in shop.counts().items())
