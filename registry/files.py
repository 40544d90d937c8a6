"""Files that a crash cannot leave half written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace(path: Path, text: str) -> None:
    """Write aside, flush, rename: a reader sees the old file or the new one, never half of either."""
    with tempfile.NamedTemporaryFile("w", prefix=".", dir=path.parent, delete=False, encoding="utf-8") as file:
        aside = Path(file.name)
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            aside.chmod(0o644)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Bring a file, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
