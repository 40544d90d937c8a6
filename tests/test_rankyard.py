"""The command line as a person meets it: exit statuses, one sentence for every refusal, JSON on request."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rankyard
from registry.deployment import Published, publish
from registry.workspace import Workspace
from tests.bundles import tiny_bundle
from tests.triton_server import needs_triton
from training import demo_shop

Run = Callable[..., tuple[int, str, str]]

INTENTS = [
    {"text": f"{verb} {thing} {n}", "label": label}
    for n in range(8)
    for verb, thing, label in (("find", "red shoes", "search"), ("where is", "my order", "order_status"))
]
GOOD = {"train.jsonl": INTENTS, "valid.jsonl": INTENTS[:4]}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in an empty directory; gives exit status, standard output and standard error."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RANKYARD_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        status = rankyard.main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


def write(directory: Path, files: dict[str, object]) -> Path:
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        if isinstance(content, bytes):
            (directory / name).write_bytes(content)
        elif isinstance(content, str):
            (directory / name).write_text(content)
        else:
            (directory / name).write_text("".join(json.dumps(row) + "\n" for row in content))  # type: ignore[attr-defined]
    return directory


def refused(result: tuple[int, str, str], *parts: str, status: int = 2) -> None:
    code, out, err = result
    assert (code, out) == (status, ""), err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("rankyard: ")
    for part in parts:
        assert part in lines[0]


TAGS = {"tokens": ["red", "shoes"], "tags": ["B-colour", "O"], "label": "search"}
PAIR = {"query_id": "q1", "query": "red shoes", "doc_id": "d1", "title": "Red shoes", "label": 1}
BAD_DATA = {
    "no directory": ("intent", "intent_linear", None, "a data directory must exist"),
    "no train file": ("intent", "intent_linear", {"test.jsonl": INTENTS}, "must hold train.jsonl"),
    "an empty file": ("intent", "intent_linear", {"train.jsonl": ""}, "it is empty"),
    "a wrong column": ("intent", "intent_linear", {"train.csv": "query,label\na,b\n"}, "text"),
    "a wrong type": ("intent", "intent_linear", {"train.jsonl": [{"text": 5, "label": "a"}]}, "line 1"),
    "not UTF-8": ("intent", "intent_linear", {"train.jsonl": b'{"text": "caf\xe9", "label": "a"}\n'}, "UTF-8"),
    "not JSON": ("intent", "intent_linear", {"train.jsonl": "{\n"}, "JSON object"),
    "one class only": ("intent", "intent_linear", {"train.jsonl": INTENTS[::2]}, "label"),
    "a NaN label": ("intent", "intent_linear", {"train.jsonl": '{"text": "a", "label": NaN}\n'}, "label"),
    "bad BIO": ("tagging", "joint_transformer", {"train.jsonl": [TAGS | {"tags": ["O", "I-size"]}]}, "I-size"),
    "tags of another length": ("tagging", "joint_transformer", {"train.jsonl": [TAGS | {"tags": ["O"]}]}, "line 1"),
    "duplicate ids in a list": ("ranking", "ranking_pairs", {"train.jsonl": [PAIR, PAIR]}, "d1"),
    "a NaN relevance": ("ranking", "ranking_pairs", {"train.jsonl": [PAIR | {"label": float("nan")}]}, "label"),
    "a bad SVMrank line": ("ranking", "ranking_xgboost", {"train.txt": "1 qid:1 1:x\n"}, "line 1"),
}


@pytest.mark.parametrize("case", BAD_DATA, ids=str)
def test_bad_data_is_refused_before_anything_is_written(run: Run, tmp_path: Path, case: str) -> None:
    task, config, files, part = BAD_DATA[case]
    data = tmp_path / "data" if files is None else write(tmp_path / "data", files)
    refused(run("train", task, "--config", config, "--data", data), part)
    assert not (tmp_path / ".rankyard").exists()


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("training.sed=3", "did you mean seed"),
        ("training.seed=abc", "training.seed"),
        ("training.regularization=-1", "training.regularization"),
        ("model.kind=forest", "model.kind"),
        ("seed", "KEY=VALUE"),
    ],
)
def test_a_configuration_that_breaks_a_rule_is_refused(run: Run, tmp_path: Path, override: str, part: str) -> None:
    data = write(tmp_path / "data", GOOD)
    refused(run("train", "intent", "--config", "intent_linear", "--data", data, "--set", override), part)
    assert not (tmp_path / ".rankyard").exists()


def test_a_configuration_of_another_task_is_refused(run: Run, tmp_path: Path) -> None:
    refused(run("train", "tagging", "--config", "intent_linear", "--data", tmp_path), "task must be tagging")


@pytest.mark.parametrize("command", ["evaluate", "predict"])
@pytest.mark.parametrize("ref", ["nobody@champion", "nobody/1", "no such ref"])
def test_an_unknown_model_is_refused(run: Run, tmp_path: Path, command: str, ref: str) -> None:
    more = ["--data", str(tmp_path)] if command == "evaluate" else ["red shoes"]
    refused(run(command, ref, *more), ref.split("@")[0].split("/")[0])
    assert not (tmp_path / ".rankyard").exists()


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_an_unknown_name_is_neither_promoted_nor_rolled_back(run: Run, tmp_path: Path, command: str) -> None:
    refused(run(command, "nobody"), "no model is registered yet, got 'nobody'")
    assert not (tmp_path / ".rankyard").exists()


def test_a_look_at_an_empty_workspace_leaves_it_empty(run: Run, tmp_path: Path) -> None:
    assert json.loads(run("models", "--json")[1]) == {"models": []}
    assert not (tmp_path / ".rankyard").exists()


def test_a_workspace_that_is_a_file_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    data = write(tmp_path / "data", GOOD)
    refused(
        run("train", "intent", "--config", "intent_linear", "--data", data, "--workspace", tmp_path / "file"),
        "workspace",
    )


def test_a_locked_workspace_is_refused(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "data", GOOD)
    with Workspace(tmp_path / ".rankyard").lock("train-intent"):
        refused(run("train", "intent", "--config", "intent_linear", "--data", data), "only one process")


def test_a_port_in_use_is_refused(run: Run, tmp_path: Path) -> None:
    publish(tmp_path / ".rankyard/deployment", "shop", {"champion": Published("1", tiny_bundle(tmp_path / "b"))})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused(run("serve", "--port", taken.getsockname()[1]), "port")


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "nowhere.invalid"])  # RFC 5737, 3849, 6761: nobody's
def test_a_host_that_is_not_this_machine_is_refused(run: Run, host: str) -> None:
    refused(run("serve", "--host", host, "--port", 0), f"an address of this machine, got {host} (", "give --host")


def test_a_gateway_without_a_champion_is_refused(run: Run) -> None:
    refused(run("serve", "--port", 0), "promote")


def test_triton_without_a_server_is_refused(run: Run, tmp_path: Path) -> None:
    publish(tmp_path / ".rankyard/deployment", "shop", {"champion": Published("1", tiny_bundle(tmp_path / "b"))})
    refused(run("serve", "--port", 0, "--runtime", "triton"), "rankyard triton up")
    refused(
        run("deploy", "shop", "--repository", tmp_path / "repository", "--triton-url", "http://127.0.0.1:9"),
        "rankyard triton up",
        status=1,
    )
    assert run("triton", "down", "--json")[:2] == (0, '{"running": false}\n')


@needs_triton
def test_a_champion_goes_to_a_triton_server_and_the_server_ends(run: Run, tmp_path: Path) -> None:
    publish(tmp_path / ".rankyard/deployment", "shop", {"champion": Published("3", tiny_bundle(tmp_path / "b"))})
    assert json.loads(run("triton", "status", "--json")[1]) == {"running": False}
    try:
        status, out, _ = run("triton", "up", "--json")
        up = json.loads(out)
        assert (status, up["running"], up["ready"]) == (0, True, True)
        deploy = ["deploy", "shop", "--repository", up["repository"], "--triton-url", f"http://{up['http']}", "--json"]
        status, out, _ = run(*deploy)
        (model,) = json.loads(out)["models"]
        assert (status, model["name"], model["version"], model["ready"]) == (0, "shop", "3", True)
        assert (Path(model["path"]) / "model.onnx").is_file()
        assert "ready" in run("triton", "status")[1]
    finally:
        assert run("triton", "down", "--json")[1] == '{"running": false}\n'
    assert json.loads(run("triton", "status", "--json")[1]) == {"running": False}


def test_a_bundle_with_a_flipped_byte_is_refused_with_both_digests(run: Run, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundles")
    model = bundle.path / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    refused(run("predict", bundle.path, "red shoes"), "model.onnx", bundle.manifest.files["model.onnx"])


def test_a_model_goes_from_files_to_champion_and_back(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "data", GOOD | {"test.jsonl": INTENTS[4:10]})
    train = ["train", "intent", "--config", "intent_linear", "--data", data, "--name", "shop", "--json"]
    status, out, _ = run(*train)
    trained = json.loads(out)
    assert status == 0
    assert set(trained) >= {"name", "version", "run_id", "bundle", "metrics", "seconds"}
    assert trained["metrics"]["test"]["accuracy"] == 1
    assert (Path(trained["bundle"]) / "manifest.json").is_file()
    status, out, _ = run("promote", "shop", "--json")
    decision = json.loads(out)
    assert (status, decision["decision"], decision["version"]) == (0, "promoted", "1")
    assert all(set(gate) >= {"name", "value", "bound", "passed", "detail"} for gate in decision["gates"])
    (model,) = json.loads(run("models", "--json")[1])["models"]
    assert (model["name"], model["aliases"]["champion"]) == ("shop", "1")
    status, out, _ = run("evaluate", "shop@champion", "--data", data / "test.jsonl", "--json")
    evaluated = json.loads(out)
    assert (evaluated["n"], evaluated["metrics"]["accuracy"]) == (6, 1)
    assert set(evaluated["intervals"]) == set(evaluated["metrics"])
    strange = write(tmp_path / "strange", {"strange.jsonl": [*INTENTS[:3], {"text": "pay", "label": "payment"}]})
    out = run("evaluate", "shop@champion", "--data", strange / "strange.jsonl")[1]
    assert "note: 1 of 4 rows have a label that the model does not know (payment); they count as errors" in out
    status, out, _ = run("predict", "shop@champion", "where is my order", "find red shoes")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["intent"]["label"] for answer in answers] == ["order_status", "search"]
    assert answers[0]["models"] == {"intent": "shop/1"}
    refused(run("rollback", "shop"), "previous", status=1)
    bad = write(tmp_path / "bad", GOOD | {"train.jsonl": spoilt(INTENTS), "test.jsonl": INTENTS[4:10]})
    assert run(*train[:5], bad, *train[6:])[0] == 0
    status, out, _ = run("promote", "shop", "--json")
    decision = json.loads(out)
    assert (status, decision["decision"]) == (1, "refused")
    assert "quality" in [gate["name"] for gate in decision["gates"] if not gate["passed"]]
    assert json.loads(run("models", "--json")[1])["models"][0]["aliases"]["champion"] == "1"


def spoilt(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    other = {"search": "order_status", "order_status": "search"}
    return [row | {"label": other[row["label"]]} for row in rows]


def test_ctrl_c_ends_a_training_with_one_line_and_no_version(tmp_path: Path) -> None:
    shop = demo_shop.generate(
        tmp_path / "shop", sizes=demo_shop.Sizes(train_queries=2000, valid_queries=50, test_queries=50)
    )
    command = [
        sys.executable,
        "-m",
        "rankyard",
        "train",
        "intent",
        "--config",
        "intent_transformer",
        "--data",
        shop.intent,
    ]
    environment = os.environ | {"RANKYARD_WORKSPACE": str(tmp_path / "workspace")}
    log = tmp_path / "log"
    with log.open("w") as output, subprocess.Popen(command, stderr=output, env=environment) as process:
        give_up_at = time.monotonic() + 300
        while "training: " not in log.read_text() and process.poll() is None and time.monotonic() < give_up_at:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)
    said = log.read_text()
    assert process.returncode == 130, said
    assert said.strip().splitlines()[-1] == (
        "rankyard: stopped by Ctrl-C; the same command with --resume goes on from the last checkpoint"
    )
    assert "Traceback" not in said
    assert not list((tmp_path / "workspace" / "bundles").glob("*"))


def test_an_ui_without_a_port_of_its_own_is_refused(run: Run) -> None:
    refused(run("ui", "--port", "99999"), "from 0 to 65535, got 99999")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(run("ui", "--port", str(port)), f"127.0.0.1:{port} cannot be taken")


def test_ctrl_c_within_a_finalizer_is_not_lost() -> None:
    class Interrupted:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def interrupted() -> None:
        Interrupted()
        time.sleep(60)

    with rankyard.ctrl_c_kept(), pytest.raises(KeyboardInterrupt):
        interrupted()


def test_a_disk_that_fills_up_anywhere_is_one_sentence(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(tmp_path / "train.lock")

    def lock(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)

    monkeypatch.setattr(Workspace, "lock", lock)
    data = write(tmp_path / "data", GOOD)
    status, out, err = run("train", "intent", "--config", "intent_linear", "--data", data)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1] == (
        f"rankyard: every file of this command must fit on its disk, which must let it be written, got {file} "
        "(No space left on device); free some space or name another place"
    )


def test_parquet_with_a_text_where_a_number_belongs_is_refused(run: Run, tmp_path: Path) -> None:
    data = write(tmp_path / "data", {})
    table = pa.table({"query_id": ["a", "a"], "doc_id": ["1", "2"], "label": [0, 1], "price": ["x", "y"]})
    pq.write_table(table, data / "train.parquet")
    refused(run("train", "ranking", "--config", "ranking_xgboost", "--data", data), "price")


def test_a_query_of_a_megabyte_is_an_error_of_its_own_line(run: Run, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundles")
    (tmp_path / "queries.txt").write_text("red shoes\n" + "x" * 1_000_000 + "\n")
    status, out, _ = run("predict", bundle.path, "--file", tmp_path / "queries.txt")
    first, second = (json.loads(line) for line in out.splitlines())
    assert status == 2
    assert first["intent"]["label"] == "product_search"
    assert second["error"]["code"] == "too_large"


def test_a_file_has_a_query_a_line_whatever_else_unicode_calls_a_line_s_end(run: Run, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundles")
    (tmp_path / "queries.txt").write_bytes("\ufeffred\u2028shoes\r\n\r\nblue\x85shirt\n".encode())
    status, out, _ = run("predict", bundle.path, "--file", tmp_path / "queries.txt")
    assert status == 0
    assert [json.loads(line)["query"] for line in out.rstrip("\n").split("\n")] == ["red\u2028shoes", "blue\x85shirt"]


def test_answers_that_nobody_reads_any_more_end_quietly(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundles")
    (tmp_path / "queries.txt").write_text("red shoes\n" * 3000)
    command = [sys.executable, "-m", "rankyard", "predict", str(bundle.path), "--file", str(tmp_path / "queries.txt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "product_search" in process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_check_finds_a_workspace_whose_bundle_was_changed(run: Run, tmp_path: Path) -> None:
    workspace = tmp_path / ".rankyard"
    bundle = tiny_bundle(workspace / "bundles")
    assert run("check", "workspace")[0] == 0
    np.savez(bundle.path / "predictions.npz", a=np.zeros(1))
    status, out, _ = run("check", "workspace", "--json")
    assert (status, json.loads(out)["ok"]) == (1, False)


def test_a_published_model_answers_without_mlflow(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    bundle = tiny_bundle(tmp_path / "bundles")
    publish(Workspace(tmp_path / ".rankyard").deployment, "shop", {"champion": Published("3", bundle)})
    status, out, err = run("predict", "shop@champion", "red shoes")
    assert (status, err) == (0, "")
    assert json.loads(out)["models"] == {"intent": "shop/3"}
