"""Files that a crash cannot leave half written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def replace(path: Path, content: str | ReadableBuffer) -> None:
    """Write aside, flush, rename: a reader sees the old file or the new one, never half of either."""
    with tempfile.NamedTemporaryFile("wb", prefix=".", dir=path.parent, delete=False) as file:
        aside = Path(file.name)
        try:
            file.write(content.encode() if isinstance(content, str) else content)
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
