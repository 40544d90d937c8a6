"""Queries without labels, one a line: what a search log is, and what a teacher can label."""

from __future__ import annotations

from pathlib import Path

from training.data.files import read_source
from training.data.splits import UnlabelledTexts


def read_unlabelled(path: Path) -> UnlabelledTexts:
    """Read the different texts of a file (or .gz), in order; DataError where it has none or is not UTF-8."""
    source = read_source(path)
    texts = dict.fromkeys(" ".join(line.split()) for line in source.lines)
    return UnlabelledTexts(tuple(text for text in texts if text), source.file, source.sha256)
