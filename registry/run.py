"""One MLflow run as a training or a promotion writes it: parameters, live metrics, datasets, pictures, files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from models.errors import RankyardError, UnavailableError, WorkspaceError
from models.manifest import SplitDigest
from registry.connection import translated

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric

_FLUSH_EVERY_S = 1.0
_BATCH = 1000
"""Metrics that MLflow takes in one request."""
_PARAMETER_CHARACTERS = 6000
_CONTEXTS = {"train": "training", "valid": "validation", "test": "testing"}


class Run:
    """A `training.fit.Recorder` that writes to MLflow; as a context manager it ends the run FINISHED, FAILED or KILLED.

    Metrics are kept back and sent about once a second, so that logging each of thousands of trees costs nothing. While
    the server is away they are kept: a long training does not die of it; only the end of the run insists.
    """

    def __init__(self, client: MlflowClient, uri: str, run_id: str) -> None:
        self.id = run_id
        self._client = client
        self._uri = uri
        self._metrics: list[Metric] = []
        self._said: list[str] = []
        self._flush_at = time.monotonic() + _FLUSH_EVERY_S

    def metrics(self, values: Mapping[str, float], step: int = 0, *, model_id: str | None = None) -> None:
        """Log values of a step, of the run or of a model it made.

        `@`, which MLflow refuses in names, is written `_at_` (`ndcg_at_10`).
        """
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._metrics += [
            Metric(metric_name(name), float(value), now_ms, step, model_id=model_id) for name, value in values.items()
        ]
        if time.monotonic() >= self._flush_at:
            try:
                self._flush()
            except (UnavailableError, WorkspaceError):
                self._flush_at = time.monotonic() + 10 * _FLUSH_EVERY_S

    def progress(self, stage: str, done: int, total: int) -> None:
        """Nothing: a bar is for the person who waits."""
        del stage, done, total

    def say(self, sentence: str) -> None:
        """Keep the line for the run's `log.txt`."""
        self._said.append(sentence)

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Log parameters; nested mappings become dotted names (`training.epochs`)."""
        from mlflow.entities import Param

        params = [Param(metric_name(name), str(value)[:_PARAMETER_CHARACTERS]) for name, value in _flat(values).items()]
        with translated(self._uri):
            for first in range(0, len(params), 100):
                self._client.log_batch(self.id, params=params[first : first + 100])

    def tags(self, values: Mapping[str, object]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        with translated(self._uri):
            self._client.log_batch(self.id, tags=[RunTag(name, str(value)) for name, value in values.items()])

    def datasets(self, name: str, splits: Mapping[str, SplitDigest]) -> None:
        """Log what each split was read from: file, rows and the start of its sha256 as digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=f"{name}/{split}",
                    digest=digest.sha256[:32],
                    source_type="local",
                    source=json.dumps({"uri": digest.file, "sha256": digest.sha256}),
                    profile=json.dumps({"num_rows": digest.rows}),
                ),
                tags=[InputTag("mlflow.data.context", _CONTEXTS.get(split, split))],
            )
            for split, digest in splits.items()
        ]
        with translated(self._uri):
            self._client.log_inputs(self.id, datasets=inputs)

    def figure(self, figure: Figure, name: str) -> None:
        """Store a matplotlib figure as `pictures/NAME.png`."""
        with translated(self._uri):
            # "tight": long labels may reach beyond what the layout has reckoned with
            self._client.log_figure(self.id, figure, f"pictures/{name}.png", save_kwargs={"bbox_inches": "tight"})

    def file(self, path: Path) -> None:
        """Store a file under its own name."""
        with translated(self._uri):
            self._client.log_artifact(self.id, str(path))

    def text(self, text: str, name: str) -> None:
        """Store a text as the file `name`."""
        with translated(self._uri):
            self._client.log_text(self.id, text, name)

    def describe(self, markdown: str) -> None:
        """Set the description that the run's page shows."""
        self.tags({"mlflow.note.content": markdown})

    def finish(self, status: str = "FINISHED") -> None:
        """Send what was kept back and end the run: FINISHED, FAILED or KILLED."""
        self._flush()
        if self._said:
            self.text("\n".join(self._said) + "\n", "log.txt")
        with translated(self._uri):
            self._client.set_terminated(self.id, status)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        try:
            if isinstance(error, Exception):
                self.tags({"error": f"{type(error).__name__}: {error}"[:5000]})
            self.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        except RankyardError:
            return  # The error on its way says more than that its record could not be written.

    def _flush(self) -> None:
        with translated(self._uri):
            while self._metrics:
                self._client.log_batch(self.id, metrics=self._metrics[:_BATCH])
                del self._metrics[:_BATCH]
        self._flush_at = time.monotonic() + _FLUSH_EVERY_S


def metric_name(name: str) -> str:
    """Write the name of a metric or parameter as MLflow takes it."""
    return name.replace("@", "_at_")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
