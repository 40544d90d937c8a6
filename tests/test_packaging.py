"""The project as it is installed: the lock file, the packages listed, the command's speed."""

import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKED = {
    canonicalize_name(line.split("==")[0]): line.split("==")[1].strip()
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if "==" in line
}


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    return [Requirement(line) for line in (*project["dependencies"], *extras)]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_the_lock_file_holds_a_version_that_pyproject_allows(requirement: Requirement) -> None:
    locked = LOCKED.get(canonicalize_name(requirement.name))
    assert locked is not None, f"{requirement.name} is not locked: run `make lock`"
    assert requirement.specifier.contains(locked), f"{requirement} does not allow {locked}: run `make lock`"


def test_every_locked_version_is_exact_and_none_is_local() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line]
    assert all("==" in line and "+" not in line and "@" not in line for line in lines)


def test_every_package_of_the_tree_is_installed() -> None:
    found = {
        str(path.parent.relative_to(ROOT)).replace("/", ".")
        for top in ("configs", "models", "registry", "serving", "training")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_help_answers_before_anything_heavy_is_imported() -> None:
    code = (
        "import sys, rankyard\n"
        "try: rankyard.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'mlflow', 'onnxruntime', 'pydantic', 'pandas', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def test_help_is_quick() -> None:
    def seconds() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rankyard", "--help"], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        return time.perf_counter() - started

    # The fastest of several: the bound is on the command, not on what else the machine does.
    assert min(seconds() for _ in range(5)) < 0.3
