"""What a run ran on: machine, Python, package versions; for a person who wonders why two runs differ."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = (
    "mlflow", "numpy", "onnx", "onnxruntime", "rankyard", "scikit-learn", "tokenizers", "torch", "transformers",
    "xgboost",
)  # fmt: skip


def facts() -> dict[str, str]:
    """Facts by name: `system.cpu`, `system.cores`, `system.memory_gb`, `package.NAME`, ..."""
    found = {
        "system.cores": str(_cores()),
        "system.cpu": _cpu(),
        "system.memory_gb": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.1f}",
        "system.os": platform.platform(),
        "system.python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            found[f"package.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
