import errno
import os
import re
import resource
import shutil
from pathlib import Path

import pytest

from models.errors import BundleError, WorkspaceError
from models.manifest import FORMAT
from models.model import open_model
from models.session import OnnxSession
from registry import golden
from registry.bundle import MANIFEST, MODEL, Bundle, copy_bundle, draft, open_bundle, seal, sha256
from tests.bundles import tiny_bundle

STORED = Path(__file__).parent / "bundles"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundles"), int8=True)


@pytest.fixture
def copy(sealed: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed.path, tmp_path / "copy"))


@pytest.mark.parametrize("directory", sorted(STORED.iterdir()), ids=lambda path: path.name)
def test_a_bundle_of_every_format_so_far_is_opened_and_answers_as_it_did(directory: Path) -> None:
    bundle = open_bundle(directory)
    golden.check_encoding(bundle, open_model(bundle.path, bundle.manifest).encode)
    for variant in ("float32", "int8"):
        golden.check(bundle, variant, OnnxSession(bundle.model_file(variant)).run)


def test_a_bundle_is_named_by_the_digest_of_its_manifest(sealed: Bundle) -> None:
    assert sealed.path.name == sealed.digest == sha256(sealed.path / MANIFEST)
    assert open_bundle(sealed.path) == sealed


def test_any_flipped_byte_is_refused_with_the_file_and_both_digests(copy: Path, sealed: Bundle) -> None:
    for name in sealed.manifest.files:
        file = copy / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(BundleError) as refused:
            open_bundle(copy)
        for part in (name, sealed.manifest.files[name], sha256(file)):
            assert part in refused.value.message
        shutil.copyfile(sealed.path / name, file)
    open_bundle(copy)


def test_a_missing_file_is_refused_by_name(copy: Path) -> None:
    (copy / MODEL).unlink()
    with pytest.raises(BundleError, match=re.escape(MODEL)):
        open_bundle(copy)


def test_a_file_that_the_manifest_does_not_list_is_refused_by_name(copy: Path) -> None:
    (copy / "code.py").write_text("print('hello')")
    with pytest.raises(BundleError, match=r"code\.py"):
        open_bundle(copy)


@pytest.mark.parametrize("number", ["3", "0", "null", '"1"'])
def test_another_format_number_is_refused_before_the_rest_is_read(copy: Path, number: str) -> None:
    text = (copy / MANIFEST).read_text().replace(f'"format": {FORMAT}', f'"format": {number}')
    (copy / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="must have format 1 or 2"):
        open_bundle(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 1}', '{"format": 1, "family": "poetry"}'])
def test_a_manifest_that_cannot_be_understood_is_refused_by_name(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(copy)


def test_a_directory_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(tmp_path / "absent")


def test_int8_is_served_where_it_was_kept(sealed: Bundle, tmp_path: Path) -> None:
    assert sealed.variant == "int8"
    plain = tiny_bundle(tmp_path)
    assert plain.variant == "float32"
    with pytest.raises(BundleError, match=r"model\.int8\.onnx"):
        plain.model_file("int8")


def test_sealing_the_same_content_again_gives_the_same_bundle(tmp_path: Path) -> None:
    first, second = tiny_bundle(tmp_path), tiny_bundle(tmp_path)
    assert first == second
    assert [path.name for path in tmp_path.iterdir()] == [first.digest]


def test_a_draft_that_is_not_sealed_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with draft(tmp_path) as directory:
            (directory / MODEL).write_bytes(b"half a model")
            raise ValueError("a training's error of its own")

    with pytest.raises(ValueError, match="of its own"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_while_a_bundle_is_written_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write() -> None:
        with draft(tmp_path) as directory:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
            try:
                (directory / MODEL).write_bytes(bytes(2000))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    with pytest.raises(WorkspaceError, match="free some space"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_while_a_bundle_is_sealed_leaves_no_bundle(
    sealed: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write() -> None:
        with draft(tmp_path) as directory:
            shutil.copyfile(sealed.path / MODEL, directory / MODEL)
            monkeypatch.setattr(os, "fsync", full)
            seal(directory, sealed.manifest, tmp_path)

    with pytest.raises(WorkspaceError, match="No space left"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_whole_or_not_there(sealed: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.copyfile
    n_copied = 0

    def fills_up(source: Path, target: Path) -> None:
        nonlocal n_copied
        n_copied += 1
        if n_copied == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(shutil, "copyfile", fills_up)
    with pytest.raises(WorkspaceError, match="No space left"):
        copy_bundle(sealed, tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert copy_bundle(sealed, tmp_path).digest == sealed.digest


def test_a_copy_that_was_damaged_since_is_refused(sealed: Bundle, tmp_path: Path) -> None:
    copied = copy_bundle(sealed, tmp_path)
    (copied.path / MODEL).write_bytes(b"damaged")
    with pytest.raises(BundleError, match=re.escape(MODEL)):
        copy_bundle(sealed, tmp_path)
