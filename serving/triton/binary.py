"""The program `tritonserver`: a container's own installation, or the one in the wheel of nvidia-pytriton."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from models.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class Binary:
    """What starts a server, with the environment and arguments that this installation needs."""

    path: Path
    environment: dict[str, str]
    arguments: tuple[str, ...] = ()


def find_binary(directory: Path) -> Binary:
    """Find `tritonserver` on the path, or in the wheel, whose backends are laid out in `directory` then.

    UnavailableError where it is nowhere, or where the wheel has no backend for this Python.
    """
    if (installed := shutil.which("tritonserver")) is not None:
        return Binary(Path(installed), {})
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError(
            "a Triton server needs the program tritonserver, none is on the path; "
            "pip install 'rankyard[triton]', or run this in an nvcr.io/nvidia/tritonserver container"
        )
    package = Path(spec.submodule_search_locations[0])
    libraries = [sysconfig.get_config_var("LIBDIR"), str(package.parent / "nvidia_pytriton.libs")]
    environment = {
        # The backend's interpreter looks for packages where the first python3 on the path does, and nowhere else.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": ":".join(filter(None, [*libraries, os.environ.get("LD_LIBRARY_PATH")])),
        "PYTHONHOME": sys.base_prefix,
    }
    backends = _write_backends(package / "tritonserver", directory / "backends")
    return Binary(package / "tritonserver" / "bin" / "tritonserver", environment, (f"--backend-directory={backends}",))


def _write_backends(tritonserver: Path, backends: Path) -> Path:
    """Lay the wheel's Python backend and its stub for this Python side by side, as the server wants them."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = tritonserver / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise UnavailableError(
            f"nvidia-pytriton must bring a backend for Python {version}, it has none; use 3.8 to 3.12"
        )
    target = backends / "python"
    # An earlier server that was killed may still run these files for a moment: they can be replaced, not rewritten.
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(tritonserver / "backends" / "python", target)
    copied = Path(shutil.copy2(stub, target / stub.name))
    copied.chmod(copied.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return backends.absolute()
