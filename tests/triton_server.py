"""A real Triton server for tests: one a session, on ports of its own, always ended."""

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from serving.runtime.protocol import ServedModel
from serving.triton.http import TritonHttp
from serving.triton.repository import install
from serving.triton.server import Running
from serving.triton.settings import TritonSettings
from tests.stopping import stop

IS_INSTALLED = importlib.util.find_spec("pytriton") is not None or shutil.which("tritonserver") is not None
needs_triton = pytest.mark.skipif(
    not IS_INSTALLED, reason="no tritonserver on the path and nvidia-pytriton is not installed"
)


@dataclass
class TritonServer:
    """The session's server. Names are shared by all tests: each test module has its own."""

    running: Running
    installed: dict[str, str] = field(default_factory=dict)

    @property
    def repository(self) -> Path:
        return Path(self.running.repository)

    @property
    def http(self) -> TritonHttp:
        return TritonHttp(self.running.http)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Stop the server's process, wait until the last of its threads stands still, and let it go on in the end."""
        try:
            stop(self.running.pid)
            yield
        finally:
            os.kill(self.running.pid, signal.SIGCONT)

    def serve(self, models: Sequence[ServedModel], settings: TritonSettings | None = None) -> None:
        """Install models, each once: loading one takes a second."""
        for model in models:
            if self.installed.get(model.ref) != model.bundle.digest:
                settings = settings or TritonSettings(n_instances=1)
                install(self.http, self.repository, model.name, model.version, model.bundle, settings)
                self.installed[model.ref] = model.bundle.digest
