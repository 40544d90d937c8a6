"""A catalogue's vectors on disk: computed once a version and encoder, and read by every gateway that starts.

A file is named by the encoder's digest and the catalogue's, and holds the matrix [N, E] of its titles, in their order.
It is a cache: one that cannot be read is computed again. Vectors of another kind of processor may differ in the last
bit; gateways that share a directory should run on one kind.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import WorkspaceError
from registry.files import replace

_SHOWN = 16


def load(directory: Path, encoder: str, version: str) -> NDArray[np.float32] | None:
    """Read vectors [N, E], NaN for a title without one; None where there are none that are whole."""
    try:
        # A member of the archive has a checksum, which is compared while it is read.
        with _file(directory, encoder, version).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            vectors_NE: NDArray[np.float32] = stored["vectors"]
    except Exception:  # a broken archive may ask zipfile for whatever its bytes happen to mean
        return None
    return vectors_NE if vectors_NE.dtype == np.float32 and vectors_NE.ndim == 2 and vectors_NE.size else None


def save(directory: Path, encoder: str, version: str, vectors_NE: NDArray[np.float32]) -> None:
    """Write vectors, and remove those of the same encoder for other versions; WorkspaceError where that fails."""
    file = _file(directory, encoder, version)
    content = io.BytesIO()
    np.savez(content, vectors=vectors_NE)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace(file, content.getbuffer())
        for other in directory.glob(f"{encoder[:_SHOWN]}-*.npz"):
            if other != file:
                other.unlink(missing_ok=True)
    except OSError as error:
        raise WorkspaceError(
            f"catalogue.vectors must be a directory that can be written, {directory} cannot ({error.strerror}); "
            "correct it or leave it out"
        ) from error


def _file(directory: Path, encoder: str, version: str) -> Path:
    return directory / f"{encoder[:_SHOWN]}-{version}.npz"
