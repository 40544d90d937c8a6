"""The state of an unfinished training on disk: tensors and numbers, whole or not at all."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from models.errors import WorkspaceError
from training.fit import Checkpoint

_STATE = "state.pt"

State = dict[str, Any]
"""Tensors, numbers, texts, and dictionaries and lists of them: what `torch.load(weights_only=True)` accepts."""


def save(checkpoint: Checkpoint, state: State) -> None:
    """Write `state` beside the last one and rename it into place; WorkspaceError where the disk does not take it."""
    target = checkpoint.directory / _STATE
    aside = target.with_suffix(".part")
    try:
        checkpoint.directory.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            torch.save({**state, "fingerprint": checkpoint.fingerprint}, file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    except (OSError, RuntimeError) as error:  # PyTorch's writer turns a full disk into RuntimeError
        aside.unlink(missing_ok=True)
        raise WorkspaceError(
            f"a checkpoint must fit on the disk of {checkpoint.directory}, got: {error}; free some space"
        ) from error


def load(checkpoint: Checkpoint) -> tuple[State | None, str]:
    """Give the state to continue, or None and the sentence that says why there is none."""
    path = checkpoint.directory / _STATE
    if not path.exists():
        return None, f"no checkpoint in {checkpoint.directory}: training starts from the beginning"
    state = _read(path)
    if state is None:
        return None, f"the checkpoint {path} cannot be read: training starts from the beginning"
    if state["fingerprint"] != checkpoint.fingerprint:
        return None, f"the checkpoint {path} is of another configuration or data: training starts from the beginning"
    return state, ""


def _read(path: Path) -> State | None:
    try:
        state = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    return state if isinstance(state, dict) and "fingerprint" in state else None
