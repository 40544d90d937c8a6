"""Stops a process where it is, as a machine does that has hung."""

import os
import signal
import time
from pathlib import Path


def stop(pid: int) -> None:
    """Stop a process, and wait until the last of its threads stands still; SIGCONT lets it go on."""
    os.kill(pid, signal.SIGSTOP)
    while not all(map(_is_stopped, Path(f"/proc/{pid}/task").glob("*/stat"))):
        time.sleep(0.001)


def _is_stopped(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "T"
    except (FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
        return True
