"""The model repository: whole versions, never overwritten, proved on a real server, taken back where that fails."""

import asyncio
import errno
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.errors import InputError, NotFoundError, ParityError, RankyardError, UnavailableError, WorkspaceError
from registry import golden
from registry.bundle import Bundle
from registry.deployment import Published, publish
from serving.runtime.protocol import ServedModel
from serving.runtime.triton import TritonRuntime
from serving.triton.http import TritonHttp
from serving.triton.repository import CONFIG, MODEL, deploy, install, prove, write
from serving.triton.settings import TritonSettings
from tests.bundles import tiny_bundle
from tests.serving.gateway.bundles import joint_bundle
from tests.serving.triton.test_server import wait_until

ONE = TritonSettings(n_instances=1)


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def needs_tokens(bundle: Bundle, directory: Path) -> Bundle:
    """The bundle, its network such that a row of padding alone is an error, as where padding is left out of a batch."""
    shutil.copytree(bundle.path, directory)
    network = onnx.load(directory / "model.onnx")
    last = next(node for node in network.graph.node if "intent_logits" in node.output)
    last.output[list(last.output).index("intent_logits")] = "logits"
    network.graph.initializer.append(numpy_helper.from_array(np.array(0, dtype=np.int64), "first"))
    network.graph.node.extend(
        [
            helper.make_node("NonZero", ["attention_mask"], ["places"]),
            helper.make_node("Gather", ["places", "first"], ["place"], axis=1),
            helper.make_node("ReduceSum", ["place"], ["sum"], keepdims=0),
            helper.make_node("Sub", ["sum", "sum"], ["nothing"]),
            helper.make_node("Cast", ["nothing"], ["zero_point"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["logits", "zero_point"], ["intent_logits"]),
        ]
    )
    onnx.save(network, directory / "model.onnx")
    return replace(bundle, path=directory)


def spoilt(bundle: Bundle, directory: Path) -> Bundle:
    """The bundle, its golden rows changed."""
    shutil.copytree(bundle.path, directory)
    file = directory / golden.FILE
    rows = json.loads(file.read_text())
    for outputs in rows["rows"][0]["outputs"].values():
        next(iter(outputs.values()))[0] += 0.5
    file.write_text(json.dumps(rows))
    return replace(bundle, path=directory)


def broken(bundle: Bundle, directory: Path) -> Bundle:
    """The bundle, its network no network."""
    shutil.copytree(bundle.path, directory)
    (directory / "model.onnx").write_bytes(b"not a network")
    return replace(bundle, path=directory)


def ask(server: TritonHttp, name: str, version: str, bundle: Bundle, prices: list[float]) -> list[float]:
    """Scores of candidates without popularity: -price / 100."""
    features_DF = np.array([[price, np.nan] for price in prices], dtype=np.float32)
    return server.infer(name, version, {"features": features_DF}, bundle.manifest.signature)["score"].tolist()


def test_a_version_is_the_served_variant_and_what_runs_it(tmp_path):
    bundle = tiny_bundle(tmp_path / "bundles", int8=True)
    written = write(tmp_path / "repository", "shop-query", "3", bundle, TritonSettings())
    assert (written.path, written.is_new, written.previous_config) == (
        tmp_path / "repository" / "shop-query" / "3",
        True,
        None,
    )
    assert files(tmp_path / "repository" / "shop-query") == {
        *(CONFIG, "3", "3/model.onnx", "3/model.py"),
        *("warmup", "warmup/3", "warmup/3/ngram_ids", "warmup/3/ngram_counts"),
    }
    assert (written.path / MODEL).read_bytes() == bundle.model_file("int8").read_bytes()


def test_both_backends_read_the_same_files(tmp_path):
    bundle = tiny_bundle(tmp_path / "bundles")
    write(tmp_path / "repository", "m", "1", bundle, TritonSettings(backend="python"))
    before = {name: (tmp_path / "repository" / "m" / "1" / name).read_bytes() for name in ("model.onnx", "model.py")}
    written = write(tmp_path / "repository", "m", "1", bundle, TritonSettings(backend="onnxruntime"))
    assert not written.is_new
    assert 'backend: "python"' in (written.previous_config or "")
    assert {name: (written.path / name).read_bytes() for name in before} == before
    assert 'backend: "onnxruntime"' in (written.path.parent / CONFIG).read_text()


def test_settings_that_cannot_be_leave_nothing(tmp_path):
    wrong = TritonSettings(preferred_batch_sizes=(100,), max_batch_size=64)
    with pytest.raises(InputError, match="preferred_batch_sizes must be at most 64"):
        write(tmp_path, "m", "1", tiny_bundle(tmp_path / "b", "intent"), wrong)
    assert not (tmp_path / "m").exists()


def test_a_version_of_another_model_is_never_overwritten(tmp_path):
    write(tmp_path, "m", "1", tiny_bundle(tmp_path / "b", "ranking"), TritonSettings())
    before = {path: path.read_bytes() for path in (tmp_path / "m").rglob("*") if path.is_file()}
    other = tiny_bundle(tmp_path / "b", "ranking", weights=np.array([1, 2], dtype=np.float32))
    with pytest.raises(WorkspaceError, match="never overwritten"):
        write(tmp_path, "m", "1", other, TritonSettings())
    assert {path: path.read_bytes() for path in (tmp_path / "m").rglob("*") if path.is_file()} == before


def test_what_runs_a_version_follows_the_program(tmp_path):
    """Else no version could be deployed again after an upgrade."""
    bundle = tiny_bundle(tmp_path / "b")
    written = write(tmp_path, "m", "1", bundle, TritonSettings())
    current = (written.path / "model.py").read_text()
    (written.path / "model.py").write_text("# of an older rankyard\n")
    write(tmp_path, "m", "1", bundle, TritonSettings())
    assert (written.path / "model.py").read_text() == current


def test_a_full_disk_leaves_no_version_and_the_configuration_of_before(tmp_path, monkeypatch):
    old = tiny_bundle(tmp_path / "b", "ranking")
    new = tiny_bundle(tmp_path / "b", "ranking", weights=np.array([1, 2], dtype=np.float32))
    write(tmp_path / "r", "m", "1", old, TritonSettings())
    before, config = files(tmp_path / "r"), (tmp_path / "r" / "m" / CONFIG).read_text()

    def fill_up(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes()[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fill_up)
    with pytest.raises(WorkspaceError, match="No space left on device"):
        write(tmp_path / "r", "m", "2", new, TritonSettings())
    assert files(tmp_path / "r") == before
    assert (tmp_path / "r" / "m" / CONFIG).read_text() == config


def test_a_repository_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="must be a directory that can be written"):
        write(tmp_path / "file", "m", "1", tiny_bundle(tmp_path / "b"), TritonSettings())


def test_a_model_is_warmed_up_with_a_text_since_padding_alone_is_none(tmp_path, triton_server):
    bundle = needs_tokens(joint_bundle(tmp_path / "b"), tmp_path / "needs-tokens")
    install(triton_server.http, triton_server.repository, "r-warm", "1", bundle, ONE)
    rows = np.frombuffer((triton_server.repository / "r-warm/warmup/1/attention_mask").read_bytes(), dtype=np.int64)
    assert rows.size
    assert rows.all()


def test_without_a_server_deploying_writes_alone(tmp_path):
    publish(tmp_path, "shop-query", {"champion": Published("3", tiny_bundle(tmp_path / "b"))})
    (done,) = deploy(tmp_path, ["shop-query"], tmp_path / "r", TritonSettings())
    assert (done.name, done.version, done.path, done.is_ready) == (
        "shop-query",
        "3",
        tmp_path / "r" / "shop-query" / "3",
        False,
    )


def test_nothing_is_written_for_an_unknown_name_or_a_server_that_is_not_there(tmp_path):
    publish(tmp_path, "shop-query", {"champion": Published("3", tiny_bundle(tmp_path / "b"))})
    with pytest.raises(NotFoundError):
        deploy(tmp_path, ["shop-query", "nothing"], tmp_path / "r", TritonSettings())
    with pytest.raises(UnavailableError, match="rankyard triton up"):
        deploy(tmp_path, ["shop-query"], tmp_path / "r", TritonSettings(), "127.0.0.1:1")
    assert not (tmp_path / "r").exists()


def test_deployed_champions_are_loaded_and_proved(triton_server, tmp_path):
    publish(tmp_path, "r-query", {"champion": Published("3", tiny_bundle(tmp_path / "b"))})
    publish(tmp_path, "r-tags", {"champion": Published("1", joint_bundle(tmp_path / "b"))})
    url = f"http://{triton_server.running.http}/"
    done = deploy(tmp_path, ["r-query", "r-tags"], triton_server.repository, ONE, url)
    assert [(one.name, one.version, one.is_ready) for one in done] == [("r-query", "3", True), ("r-tags", "1", True)]


def test_a_server_of_another_repository_is_named_and_nothing_is_left_in_this_one(triton_server, tmp_path):
    publish(tmp_path, "r-astray", {"champion": Published("3", tiny_bundle(tmp_path / "b"))})
    with pytest.raises(WorkspaceError, match=rf"reads {tmp_path / 'r'}, it finds no r-astray"):
        deploy(tmp_path, ["r-astray"], tmp_path / "r", ONE, triton_server.running.http)
    assert not list((tmp_path / "r").iterdir())


def test_the_port_for_grpc_is_told_from_that_for_http(triton_server):
    with pytest.raises(UnavailableError, match=r"must answer HTTP on .*, got: another protocol; start one"):
        TritonHttp(triton_server.running.grpc).expect_live()


def test_a_request_larger_than_the_largest_batch_is_split_and_joined(triton_server, tmp_path):
    bundle = tiny_bundle(tmp_path, "ranking")
    served = ServedModel("r-large", "1", bundle)
    triton_server.serve([served], TritonSettings(n_instances=1, max_documents=5))
    assert ask(triton_server.http, "r-large", "1", bundle, list(range(12))) == pytest.approx(
        [-price / 100 for price in range(12)]
    )

    async def through_the_runtime():
        runtime = TritonRuntime(triton_server.running.grpc)
        await runtime.load(served)
        features_DF = np.array([[price, np.nan] for price in range(12)], dtype=np.float32)
        answer = await runtime.infer(served, {"features": features_DF}, timeout_s=5)
        await runtime.close()
        return answer["score"].tolist()

    assert asyncio.run(through_the_runtime()) == pytest.approx([-price / 100 for price in range(12)])


def test_a_version_that_fails_its_proof_is_taken_back(triton_server, tmp_path):
    server, directory = triton_server.http, triton_server.repository / "r-proof"
    first = tiny_bundle(tmp_path, "ranking")
    second = tiny_bundle(tmp_path, "ranking", weights=np.array([1, 2], dtype=np.float32))
    with pytest.raises(ParityError, match="golden row 0"):
        install(server, triton_server.repository, "r-proof", "1", spoilt(first, tmp_path / "s1"), ONE)
    assert not directory.exists()
    with pytest.raises(RankyardError, match="r-proof"):
        ask(server, "r-proof", "1", first, [100.0])

    install(server, triton_server.repository, "r-proof", "1", first, ONE)
    before, config = files(directory), (directory / CONFIG).read_text()
    with pytest.raises(ParityError, match="golden row 0"):
        install(server, triton_server.repository, "r-proof", "2", spoilt(second, tmp_path / "s2"), ONE)
    assert (files(directory), (directory / CONFIG).read_text()) == (before, config)
    assert ask(server, "r-proof", "1", first, [100.0]) == pytest.approx([-1.0])


def test_a_model_that_cannot_be_loaded_is_one_sentence_and_the_one_before_answers_on(triton_server, tmp_path):
    server, bundle = triton_server.http, tiny_bundle(tmp_path, "ranking")
    install(server, triton_server.repository, "r-load", "1", bundle, ONE)
    with pytest.raises(RankyardError, match="r-load") as raised:
        install(server, triton_server.repository, "r-load", "2", broken(bundle, tmp_path / "broken"), ONE)
    assert raised.value.message.startswith(f"Triton at http://{triton_server.running.http} must accept")
    assert raised.value.message.endswith("Protobuf parsing failed; its log may say more")
    assert "\n" not in raised.value.message
    assert not (triton_server.repository / "r-load" / "2").exists()
    server.expect_live()
    assert ask(server, "r-load", "1", bundle, [100.0]) == pytest.approx([-1.0])


def test_a_name_changes_its_inputs_while_the_server_serves(triton_server, tmp_path):
    """From n-grams to tokens, without a failure of the name beside it."""
    linear, joint = tiny_bundle(tmp_path / "b", "intent"), joint_bundle(tmp_path / "b")
    other = tiny_bundle(tmp_path / "b", "ranking")
    server = triton_server.http
    install(server, triton_server.repository, "r-other", "1", other, ONE)
    install(server, triton_server.repository, "r-update", "1", linear, ONE)
    failures, n_answers, is_over = [], 0, threading.Event()

    def ask_on() -> None:
        nonlocal n_answers
        while not is_over.is_set():
            try:
                assert ask(server, "r-other", "1", other, [100.0]) == pytest.approx([-1.0])
                n_answers += 1
            except Exception as error:
                failures.append(error)

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        wait_until(lambda: n_answers or failures)
        install(server, triton_server.repository, "r-update", "2", joint, ONE)
        n_before = n_answers
        wait_until(lambda: n_answers > n_before or failures)
    finally:
        is_over.set()
        asking.join()
    assert failures == []
    prove(server, "r-update", "2", joint)
    with pytest.raises(RankyardError, match="r-update"):
        prove(server, "r-update", "1", linear)


def test_a_batch_that_is_answered_otherwise_than_its_rows_fails_the_proof(tmp_path):
    bundle = tiny_bundle(tmp_path, "ranking")

    class Forgetful(TritonHttp):
        """Answers the first list of a batch alone, as a fixed first axis would."""

        def infer(self, _name, _version, arrays, _signature):
            features_DF = np.nan_to_num(arrays["features"])
            score_D = features_DF @ np.array([-0.01, 1.0], dtype=np.float32)
            if len(score_D) > 4:
                score_D[4:] = 0
            return {"score": score_D}

    with pytest.raises(ParityError, match="a batch as it answers each row alone"):
        prove(Forgetful("127.0.0.1:1"), "m", "1", bundle)
