import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import BundleError, NotFoundError, WorkspaceError
from registry import deployment
from registry.bundle import MODEL, Bundle
from registry.deployment import Published
from tests.bundles import tiny_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    directory = tmp_path_factory.mktemp("bundles")
    return tiny_bundle(directory, name="shop"), tiny_bundle(directory, name="shop", int8=True)


def test_what_is_published_is_resolved_by_alias_by_version_and_by_directory(
    bundles: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    old, new = bundles
    deployment.publish(tmp_path, "shop", {"champion": Published("2", new), "previous": Published("1", old)})
    assert json.loads((tmp_path / "aliases" / "shop.json").read_text()) == {
        "name": "shop",
        "family": "intent",
        "aliases": {
            "champion": {"version": "2", "digest": new.digest},
            "previous": {"version": "1", "digest": old.digest},
        },
    }
    for ref, version, bundle in (
        ("shop@champion", "2", new),
        ("shop/2", "2", new),
        ("shop@previous", "1", old),
        ("shop/1", "1", old),
    ):
        name, number, found = deployment.resolve(tmp_path, ref)
        assert (name, number, found.digest) == ("shop", version, bundle.digest)
        assert found.path == tmp_path / "bundles" / bundle.digest
    name, version, found = deployment.resolve(tmp_path, str(new.path))
    assert (name, found.digest) == ("shop", new.digest)
    assert new.digest.startswith(version)


def test_publishing_again_replaces_all_that_the_name_means(bundles: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    old, new = bundles
    deployment.publish(tmp_path, "shop", {"champion": Published("1", old)})
    deployment.publish(tmp_path, "shop", {"champion": Published("2", new)})
    assert deployment.resolve(tmp_path, "shop@champion").version == "2"
    with pytest.raises(NotFoundError, match=r"champion \(version 2\)"):
        deployment.resolve(tmp_path, "shop/1")


def test_what_is_not_published_is_named_with_what_is(bundles: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    assert deployment.names(tmp_path) == []
    with pytest.raises(NotFoundError, match="has none, got 'shop'"):
        deployment.resolve(tmp_path, "shop@champion")
    deployment.publish(tmp_path, "shop", {"champion": Published("1", bundles[0])})
    assert [pointer.name for pointer in deployment.names(tmp_path)] == ["shop"]
    with pytest.raises(NotFoundError, match="has shop, got 'shoe'"):
        deployment.resolve(tmp_path, "shoe@champion")
    with pytest.raises(NotFoundError, match="got shop@challenger"):
        deployment.resolve(tmp_path, "shop@challenger")


def test_a_pointer_is_replaced_only_after_its_bundles_are_there(
    bundles: tuple[Bundle, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = bundles
    deployment.publish(tmp_path, "shop", {"champion": Published("1", old)})
    before = (tmp_path / "aliases" / "shop.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkspaceError, match="No space left"):
        deployment.publish(tmp_path, "shop", {"champion": Published("2", new)})
    with pytest.raises(WorkspaceError, match="No space left"):
        deployment.publish(tmp_path, "shop", {"champion": Published("3", old)})
    monkeypatch.undo()
    assert (tmp_path / "aliases" / "shop.json").read_bytes() == before
    assert [file.name for file in (tmp_path / "aliases").iterdir()] == ["shop.json"]
    assert [file.name for file in (tmp_path / "bundles").iterdir()] == [old.digest]
    assert deployment.resolve(tmp_path, "shop@champion").version == "1"


def test_a_published_bundle_that_was_damaged_is_refused(bundles: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    deployment.publish(tmp_path, "shop", {"champion": Published("1", bundles[0])})
    (tmp_path / "bundles" / bundles[0].digest / MODEL).write_bytes(b"damaged")
    with pytest.raises(BundleError, match="sha256"):
        deployment.resolve(tmp_path, "shop@champion")


def test_a_bundle_under_another_digest_is_refused(bundles: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    old, new = bundles
    deployment.publish(tmp_path, "shop", {"champion": Published("1", old), "previous": Published("2", new)})
    (tmp_path / "bundles" / old.digest).rename(tmp_path / "aside")
    (tmp_path / "bundles" / new.digest).rename(tmp_path / "bundles" / old.digest)
    with pytest.raises(BundleError, match=new.digest):
        deployment.resolve(tmp_path, "shop@champion")


@pytest.mark.parametrize("text", ["", "{}", '{"name": "shop", "family": "poetry", "aliases": {}}'])
def test_a_pointer_that_cannot_be_understood_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "aliases").mkdir()
    (tmp_path / "aliases" / "shop.json").write_text(text)
    with pytest.raises(WorkspaceError, match=r"shop\.json"):
        deployment.resolve(tmp_path, "shop@champion")


def test_what_gateways_use_of_the_registry_imports_neither_mlflow_nor_pandas() -> None:
    code = (
        "import sys, registry.deployment, registry.golden, registry.bundle, registry.workspace\n"
        "heavy = {'mlflow', 'pandas', 'torch', 'sklearn', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
