"""The project as it is installed: the lock file, the packages listed, what the command imports."""

import subprocess
import sys
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


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"]], ids=" ".join)
def test_help_imports_the_standard_library_and_the_errors_alone(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "import rankyard\n"
        f"try: rankyard.main({arguments})\n"
        "except SystemExit: pass\n"
        "new = set(sys.modules) - before\n"
        "found = {name for name in new if name.partition('.')[0] not in sys.stdlib_module_names}\n"
        "assert found == {'rankyard', 'models', 'models.errors'}, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
