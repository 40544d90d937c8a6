"""What a model runs once before it is asked: a row of its longest golden request, since zeros are no text to it.

`NAME/warmup/VERSION/INPUT` holds the row as bytes; `config.pbtxt` names it, and Triton repeats it to fill a batch.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.batch import collate
from registry import golden
from registry.bundle import Bundle
from registry.files import flush

FOLDER = "warmup"


def row(bundle: Bundle) -> dict[str, NDArray[np.generic]]:
    """One row of every input, without the batch's axis."""
    longest = max((golden_row.encoded for golden_row in golden.read(bundle)), key=lambda encoded: encoded.length)
    return {name: array[0] for name, array in collate([longest], bundle.manifest.signature).items()}


def file_of(version: str, name: str) -> str:
    """Where an input's row lies, below `NAME/warmup`."""
    return f"{version}/{name}"


def write(directory: Path, version: str, bundle: Bundle) -> None:
    """Put a version's rows into a model's directory."""
    for name, array in row(bundle).items():
        path = directory / FOLDER / file_of(version, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.ascontiguousarray(array).tobytes())
        flush(path)


def remove(directory: Path, version: str) -> None:
    """Take a version's rows back, and the folder where they were the last."""
    shutil.rmtree(directory / FOLDER / version, ignore_errors=True)
    if (directory / FOLDER).is_dir() and not any((directory / FOLDER).iterdir()):
        (directory / FOLDER).rmdir()
