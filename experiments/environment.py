"""Environments of their own for what a study compares with."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

_STAMP = "requirements.json"


def fresh(directory: Path, requirements: Sequence[str]) -> Path:
    """Make an environment with `requirements` alone, or find it made; gives its Python."""
    python, stamp = directory / "bin" / "python", directory / _STAMP
    wanted = json.dumps(list(requirements))
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(directory, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *requirements], check=True)
        stamp.write_text(wanted)
    return python


def overlay(directory: Path, requirements: Sequence[str]) -> Path:
    """Make an environment with `requirements`, without what they need, over the packages of this one; or find it."""
    python, stamp = directory / "bin" / "python", directory / _STAMP
    wanted = json.dumps([*requirements, *sys.path[1:]])
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(directory, with_pip=True, clear=True)
        packages = next(directory.glob("lib/python*/site-packages"))
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n" + "\n".join(sys.path[1:]) + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", *requirements], check=True)
        stamp.write_text(wanted)
    return python
