"""A real `mlflow server` with its artifact proxy, which also sends webhooks, to plain addresses of this machine."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_WEBHOOKS = {
    "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
    # Which webhooks there are is looked up for every event, instead of once a minute.
    "MLFLOW_WEBHOOK_CACHE_TTL": "0",
}


@contextlib.contextmanager
def mlflow_server(home: Path, empty_database: Path) -> Iterator[str]:
    """Start it in `home`; clients never see where its artifacts lie."""
    shutil.copyfile(empty_database, home / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{home}/mlflow.db",
        "--serve-artifacts", "--artifacts-destination", str(home / "artifacts"),
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=home, stdout=log, stderr=log, env={**os.environ, **_WEBHOOKS})
        try:
            _wait(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + 180
    while time.monotonic() < give_up_at:
        assert process.poll() is None, "the tracking server ended before it answered"
        try:
            with urllib.request.urlopen(url, timeout=30):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the tracking server never answered")


def in_another_process(code: str, uri: str) -> str:
    """What Python code prints that knows the registry at `uri` by MLflow's own variable alone."""
    root, environment = Path(__file__).parents[1], {**os.environ, "MLFLOW_TRACKING_URI": uri}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=root, env=environment).stdout
