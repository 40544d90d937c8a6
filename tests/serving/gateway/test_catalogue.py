"""Titles of a catalogue, ready before they are asked for, in a real gateway."""

import gzip
import hashlib
import json

import numpy as np
import pytest

from models.errors import ConfigError
from registry.deployment import Published, publish
from serving.gateway import vectors
from serving.gateway.catalogue import read
from tests.serving.gateway.bundles import text_bundle
from tests.serving.gateway.conftest import gateway, start, until
from tests.word_encoder import WORDS

TITLES = ["red shoes", "blue shirt", "red shirt", "nike shoes"]
ASKED = {
    "query": {"text": "red shoes"},
    "candidates": [{"id": title, "text": title, "features": {"price": 1.0}} for title in TITLES],
}


def write(file, titles):
    """Put a catalogue in its place, whole, as a shop must; gives its version."""
    content = "".join(json.dumps({"id": f"p{n}", "title": title}) + "\n" for n, title in enumerate(titles))
    aside = file.with_name("aside")
    aside.write_text(content)
    aside.replace(file)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


@pytest.fixture
def deployed(tmp_path):
    directory = tmp_path / "deployment"

    def promote(version, titles):
        publish(directory, "texts", {"champion": Published(version, text_bundle(tmp_path / "bundles", titles))})

    promote("1", TITLES)
    return directory, promote


def texts(client):
    """Texts that are known, and those that were not when they were asked for."""
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
    return int(float(lines["rankyard_text_cache_texts"])), float(lines['rankyard_text_cache_total{result="miss"}'])


def wait_for(client, n_known):
    until(lambda: texts(client)[0] >= n_known)


def test_titles_are_known_before_they_are_asked_for_and_the_next_version_adds_what_is_new(deployed, tmp_path):
    directory, promote = deployed
    file = tmp_path / "products.jsonl"
    version = write(file, TITLES)
    says = f"catalogue {version}: 4 titles ready"
    with gateway(directory, {"follow_s": 0.02, "catalogue": {"file": str(file)}}, says=says) as client:
        # The golden rows are of the titles and the query too.
        wait_for(client, 4)
        assert client.post("/v1/rank", json={**ASKED, "query": {"text": "red shoes"}}).status_code == 200
        _, n_missed = texts(client)
        assert client.post("/v1/rank", json=ASKED).status_code == 200
        assert texts(client) == (4, n_missed)
        write(file, [*TITLES[1:], "blue shoes"])
        wait_for(client, 5)
        assert texts(client) == (5, n_missed + 1)
        # A new model of the same encoder finds all of it.
        promote("2", TITLES[:2])
        until(lambda: client.get("/v1/models").json()["models"][0]["ref"] == "texts/2")
        assert client.post("/v1/rank", json=ASKED).json()["models"] == ["texts/2"]
        assert texts(client) == (5, n_missed + 1)


def test_answers_are_the_same_to_the_last_bit_without_a_cache(deployed):
    directory, _ = deployed
    answers = []
    for n_bytes in (0, 128 * 1024 * 1024):
        with gateway(directory, {"cache": {"max_text_bytes": n_bytes}}) as client:
            answers += [client.post("/v1/rank", json=ASKED).json()["ranking"] for _ in range(2)]
            assert (texts(client)[0] > 0) == (n_bytes > 0)
    assert answers[0] == answers[1] == answers[2] == answers[3]
    # The cosine less a tenth of the price, 1: "red shoes" is the query itself.
    assert answers[0][0] == {"id": "red shoes", "score": pytest.approx(0.9, abs=1e-6), "rank": 1}


def test_a_new_version_that_cannot_be_read_leaves_the_one_before(deployed, tmp_path):
    file = tmp_path / "products.jsonl"
    version = write(file, TITLES)
    says = f"still with catalogue {version}: every line of catalogue.file must be an object with a title, {file}:2 has"
    with gateway(deployed[0], {"follow_s": 0.02, "catalogue": {"file": str(file)}}, says=says) as client:
        wait_for(client, 4)
        (tmp_path / "aside").write_text('{"title": "red"}\n{"name": "blue"}\n')
        (tmp_path / "aside").replace(file)
        client.log.wait_for(says)
        write(file, [*TITLES, "blue shoes"])
        wait_for(client, 5)


def test_a_catalogue_beyond_the_bound_is_said(deployed, tmp_path):
    file = tmp_path / "products.jsonl"
    write(file, TITLES)
    config = {"catalogue": {"file": str(file)}, "cache": {"max_text_bytes": 2_000}}
    with gateway(deployed[0], config, says="4 titles take more than cache.max_text_bytes") as client:
        until(lambda: texts(client)[1] >= 4)
        assert client.post("/v1/rank", json=ASKED).status_code == 200


def test_the_next_gateway_computes_nothing_that_is_kept_and_answers_with_the_same_bits(deployed, tmp_path):
    file, kept = tmp_path / "products.jsonl", tmp_path / "vectors"
    version = write(file, [*TITLES, " "])
    config = {"catalogue": {"file": str(file), "vectors": str(kept)}}
    answers, missed = [], []
    for _ in range(2):
        says = f"catalogue {version}: 5 titles ready"
        with gateway(deployed[0], config, says=says) as client:
            client.log.wait_for(says)
            assert texts(client)[0] == 5
            answers.append(client.post("/v1/rank", json=ASKED).json()["ranking"])
            missed.append(texts(client)[1])
    assert answers[0] == answers[1]
    (stored,) = kept.iterdir()
    assert stored.name.endswith(f"-{version}.npz")
    # The proof on the golden rows reads three texts, one of which no title is; the others were known.
    assert missed[1] == 3 < missed[0]


def test_vectors_that_are_broken_are_computed_again_and_those_of_other_versions_go(deployed, tmp_path):
    file, kept = tmp_path / "products.jsonl", tmp_path / "vectors"
    config = {"catalogue": {"file": str(file), "vectors": str(kept)}}
    for n_titles in (3, 4, 4):
        write(file, TITLES[:n_titles])
        with gateway(deployed[0], config, says=f"{n_titles} titles ready"):
            pass
        (found,) = kept.glob("*.npz")
        content = found.read_bytes()
        assert vectors.load(kept, found.name[:16], found.stem[17:]).shape == (n_titles, len(WORDS))
        found.write_bytes(content[:-90] + bytes(50) + content[-40:])
        assert vectors.load(kept, found.name[:16], found.stem[17:]) is None


def test_a_directory_that_cannot_be_written_is_said(deployed, tmp_path):
    file = tmp_path / "products.jsonl"
    write(file, TITLES)
    config = {"catalogue": {"file": str(file), "vectors": str(file / "under")}}
    with gateway(deployed[0], config, says="catalogue.vectors must be a directory that can be written") as client:
        wait_for(client, 4)


def test_a_file_that_is_none_is_refused_at_the_start(deployed, tmp_path):
    process = start(deployed[0], {"catalogue": {"file": str(tmp_path / "missing.jsonl")}})
    out, said = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert said.startswith("catalogue.file must be a readable file of JSON lines, got ")
    assert len(said.splitlines()) == 1


def test_equal_titles_count_once_and_gz_is_read(tmp_path):
    content = b'{"title": "red"}\n\n{"title": "red"}\n{"title": "blue"}\n'
    file = tmp_path / "products.jsonl.gz"
    file.write_bytes(gzip.compress(content))
    assert read(file).titles == ("red", "blue")


def test_a_gz_that_is_none_is_a_sentence(tmp_path):
    packed = bytearray(gzip.compress(b'{"title": "red"}' * 20))
    packed[12:16] = b"\xff" * 4
    (tmp_path / "p.jsonl.gz").write_bytes(packed)
    with pytest.raises(ConfigError, match="must be a readable file of JSON lines"):
        read(tmp_path / "p.jsonl.gz")


def test_lines_end_where_json_lines_do(tmp_path):
    (tmp_path / "p.jsonl").write_bytes('{"title": "red\u2028shoes"}\r\n{"title": "\x85"}'.encode())
    assert read(tmp_path / "p.jsonl").titles == ("red\u2028shoes", "\x85")


def test_vectors_with_any_byte_of_theirs_changed_are_read_or_computed_again(tmp_path):
    vectors.save(tmp_path, "e", "v", np.ones((2, 3), np.float32))
    (file,) = tmp_path.glob("*.npz")
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        found = vectors.load(tmp_path, "e", "v")
        assert found is None or found.dtype == np.float32


@pytest.mark.parametrize("line", ["[" * 100_000, "{", "3", '{"title": 3}', '{"title": "\\ud800"}', '{"id": 1}'])
def test_the_first_line_without_a_title_is_named(tmp_path, line):
    (tmp_path / "p.jsonl").write_text(f'{{"title": "a"}}\n{line}\n')
    with pytest.raises(ConfigError, match=r"p\.jsonl:2 has") as refused:
        read(tmp_path / "p.jsonl")
    assert refused.value.field == "catalogue.file"
