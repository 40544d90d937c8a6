"""A connection to MLflow, SQLite file or server: quiet, quick to give up, its errors turned into rankyard's own.

Importing MLflow takes three seconds or more, so it happens when the first connection is made, not before.
"""

from __future__ import annotations

import gc
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from models.errors import NotFoundError, RankyardError, UnavailableError, WorkspaceError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_HEALTH_TIMEOUT_S = 10.0
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's seven tries with doubling pauses keep a person waiting for minutes before they hear of a dead server.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}
_LOCKED = ("database is locked", "database table is locked")
_UNWRITABLE = ("readonly database", "unable to open database", "disk I/O error", "database or disk is full")
_NOT_A_DATABASE = ("file is not a database", "Can't locate revision", "out-of-date database schema", "malformed")
_UNREACHABLE = ("Max retries exceeded", "Connection refused", "Connection aborted", "timed out", "Failed to resolve")


def connect(uri: str) -> MlflowClient:
    """Open a tracking server and registry by its URI; UnavailableError or WorkspaceError where it cannot be used."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    _prove_reachable(uri)
    with _no_garbage_collection():
        from mlflow import MlflowClient

        for logger in ("mlflow", "alembic"):
            logging.getLogger(logger).setLevel(logging.WARNING)
        with translated(uri):
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_registered_models(max_results=1)
    return client


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Import without looking for garbage: the import makes half a million objects that stay, a seventh of its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def translated(uri: str) -> Iterator[None]:
    """Raise what MLflow and its database raise as one of rankyard's errors."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise _translate(uri, error) from error


def _translate(uri: str, error: Exception) -> RankyardError:
    reason = " ".join(str(error).split())
    if any(sign in reason for sign in _LOCKED):
        return WorkspaceError(f"only one process at a time may write to {uri}, another one holds it; try again later")
    if any(sign in reason for sign in _UNWRITABLE):
        return WorkspaceError(f"{uri} must be a database that can be written, got: {reason}; free or name another one")
    if any(sign in reason for sign in _NOT_A_DATABASE):
        return WorkspaceError(f"{uri} must be a database of this MLflow, got: {reason}; name another workspace")
    if any(sign in reason for sign in _UNREACHABLE):
        return UnavailableError(
            f"the tracking server {uri} must answer, got: {reason}; start it or correct its address"
        )
    if isinstance(error, OSError):
        return WorkspaceError(f"artifacts must fit on the disk of {uri}, got: {reason}; free some space")
    if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
        return NotFoundError(f"{uri} does not have it: {reason}")
    return RankyardError(f"MLflow at {uri} failed: {reason}")


def _prove_reachable(uri: str) -> None:
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_HEALTH_TIMEOUT_S):  # noqa: S310 - http(s) only
            pass
    except urllib.error.HTTPError:
        pass  # It answers; whether it lets us in is for MLflow's own requests to find out.
    except OSError as error:
        raise _unavailable(uri, str(error)) from error


def _unavailable(uri: str, reason: str) -> UnavailableError:
    return UnavailableError(f"the tracking server {uri} must answer, got: {reason}; start it or correct its address")
