"""The one place that talks to MLflow: runs, registered models, versions, aliases, and bundles by REF.

A workspace is its own registry (SQLite and a directory of artifacts) unless a tracking server is named.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import BundleError, InputError, NotFoundError
from models.manifest import FamilyName
from registry import bundle as bundles
from registry import connection, system
from registry.bundle import Bundle
from registry.connection import translated
from registry.evaluation import EVALUATION, Report
from registry.references import check_alias, check_name, parse
from registry.run import Run, metric_name
from registry.workspace import Workspace

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CANDIDATE = "candidate"
FINGERPRINT = "rankyard.fingerprint"
_DIGEST = "rankyard.digest"
_METRICS = "rankyard.metrics"
_PAGE = 200


@dataclass(frozen=True, slots=True)
class Version:
    """A registered version: what it is called, the digest of its bundle, and the run that made it."""

    name: str
    version: str
    digest: str
    created: datetime
    run_id: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        """`NAME/VERSION`."""
        return f"{self.name}/{self.version}"


class Tracking:
    """MLflow as rankyard uses it; connects on first use.

    uri: a tracking server (`http://...`) or database; None: the workspace's own SQLite file. Errors: NotFoundError for
    what does not exist, UnavailableError for a server that is away, WorkspaceError for a locked or unwritable database.
    """

    def __init__(self, workspace: Workspace, uri: str | None = None) -> None:
        self.workspace = workspace
        self._is_own = not uri
        self.uri = uri or f"sqlite:///{workspace.database.absolute()}"

    @cached_property
    def _client(self) -> MlflowClient:
        self.workspace.open()
        return connection.connect(self.uri)

    @property
    def _is_unwritten(self) -> bool:
        """Whether the workspace's own registry does not exist yet; looking something up must not create it."""
        root = self.workspace.root
        return self._is_own and (not root.exists() or root.is_dir()) and not self.workspace.database.exists()

    @property
    def _is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    @contextmanager
    def training(self, family: FamilyName, name: str, *, resume: str | None = None) -> Iterator[Run]:
        """Record a training in the experiment of its family; ends FINISHED, FAILED, or KILLED by Ctrl-C.

        resume: a fingerprint; the newest unfinished run with that tag is continued, where there is one.
        """
        run_id = None if resume is None else self._unfinished(family, resume)
        with self.start(family, name, run_id=run_id) as run:
            yield run

    def start(
        self, experiment: str, name: str, *, run_id: str | None = None, parent_id: str = "", description: str = ""
    ) -> Run:
        """Start a run, or continue `run_id`; the caller ends it with `finish` or by using it as a context manager.

        parent_id: the run that the new one is part of; MLflow shows it nested.
        """
        with translated(self.uri):
            if run_id is None:
                tags = {"mlflow.source.name": "rankyard", "mlflow.source.type": "LOCAL"}
                if parent_id:
                    tags["mlflow.parentRunId"] = parent_id
                run_id = self._client.create_run(self._experiment(experiment), run_name=name, tags=tags).info.run_id
            else:
                self._client.update_run(run_id, status="RUNNING")
        run = Run(self._client, self.uri, run_id)
        run.tags(system.facts())
        if description:
            run.describe(description)
        return run

    def register(self, bundle: Bundle, run: Run) -> str:
        """Log the bundle as an MLflow model of `run` and as the next version of its name; gives the version's number.

        The version carries digest, family and metrics as tags, and becomes the name's `candidate`.
        """
        name = check_name(bundle.manifest.name)
        report = Report.load(bundle.path)
        run.file(bundle.path / EVALUATION)
        with translated(self.uri):
            model = self._log_model(bundle, run, report)
            self._create_name(name, bundle.manifest.family)
            version = self._client.create_model_version(
                name,
                model.artifact_location,
                run.id,
                tags=_version_tags(bundle, report),
                description=_description(bundle, report),
                model_id=model.model_id,
            )
            link = json.dumps([{"name": name, "version": version.version}])
            self._client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": link})
        self.move_alias(name, CANDIDATE, str(version.version))
        return str(version.version)

    def resolve(self, ref: str) -> Bundle:
        """Give the verified bundle that NAME@alias, NAME/VERSION or a directory means; fetched if it is not here."""
        reference = parse(ref)
        if isinstance(reference, Path):
            return bundles.open_bundle(reference)
        return self.fetch(self.locate(ref))

    def locate(self, ref: str) -> Version:
        """Find the version that NAME@alias or NAME/VERSION means; NotFoundError says what there is instead."""
        reference = parse(ref)
        if isinstance(reference, Path):
            raise InputError(f"a registered model is NAME@alias or NAME/VERSION, got the directory {ref}")
        model = self._registered(reference.name)
        number = reference.version or self._aliases_of(model).get(str(reference.alias))
        if number is None:
            known = ", ".join(f"{alias} (version {v})" for alias, v in self._aliases_of(model).items()) or "none"
            raise NotFoundError(f"{reference.name} has the aliases: {known}; got {reference}")
        versions = self.versions(reference.name)
        for version in versions:
            if version.version == number:
                return version
        raise NotFoundError(
            f"{reference.name} has the versions {', '.join(v.version for v in versions) or 'none'}; got {reference}"
        )

    def fetch(self, version: Version) -> Bundle:
        """Give a version's bundle, verified, from the workspace or else downloaded into it."""
        here = self.workspace.bundles / version.digest
        if not here.exists():
            self._download(version)
        bundle = bundles.open_bundle(here)
        if bundle.digest != version.digest:
            raise BundleError(
                f"{here} must have the digest {version.digest}, it has {bundle.digest}; remove it, it is fetched again"
            )
        return bundle

    def versions(self, name: str) -> list[Version]:
        """All of a name's versions that rankyard registered, oldest first."""
        with translated(self.uri):
            found = _pages(self._client.search_model_versions, filter_string=f"name='{check_name(name)}'")
        mine = [_version(version) for version in found if _DIGEST in version.tags]
        return sorted(mine, key=lambda version: int(version.version))

    def aliases(self, name: str) -> dict[str, str]:
        """Alias -> version of a name; NotFoundError where nothing is registered under it."""
        return self._aliases_of(self._registered(name))

    def move_alias(self, name: str, alias: str, version: str | None) -> None:
        """Let `alias` mean `version`, or nothing (None); the move is kept as a tag of the name and of the version.

        `alias.champion.2026-11-23T20:51:00.123456Z = 3` on the name, `= set` or `= removed` on the version.
        """
        before = self.aliases(name).get(check_alias(alias))
        if before == version:
            return
        moment = f"alias.{alias}.{datetime.now(UTC).isoformat(timespec='microseconds').replace('+00:00', 'Z')}"
        with translated(self.uri):
            if version is None:
                self._client.delete_registered_model_alias(name, alias)
            else:
                self._client.set_registered_model_alias(name, alias, version)
                self._client.set_model_version_tag(name, version, moment, "set")
            if before is not None:
                self._client.set_model_version_tag(name, before, moment, "removed")
            self._client.set_registered_model_tag(name, moment, version or "removed")

    def models(self, name: str | None = None) -> list[dict[str, Any]]:
        """Every registered model, or the one called `name`: its aliases, and its versions with metrics and moment."""
        if name is None and self._is_unwritten:
            return []
        with translated(self.uri):
            found = [self._registered(name)] if name else _pages(self._client.search_registered_models)
        rows = []
        for model in found:
            versions = [
                {"version": v.version, "metrics": dict(v.metrics), "created": v.created.isoformat()}
                for v in self.versions(model.name)
            ]
            if versions:
                rows.append({"name": model.name, "aliases": self._aliases_of(model), "versions": versions})
        return rows

    def ui_command(self, host: str, port: int) -> list[str]:
        """Arguments of `python -m` that start MLflow's UI on this registry; InputError where it is a server already."""
        if self._is_server:
            raise InputError(f"the tracking server {self.uri} brings its own UI; open that address")
        self.workspace.open()
        return [
            "mlflow", "server", "--backend-store-uri", self.uri, "--default-artifact-root",
            self.workspace.artifacts.absolute().as_uri(), "--host", host, "--port", str(port), "--workers", "1",
        ]  # fmt: skip

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        # A server decides where its artifacts lie; a database alone would put them below the current directory.
        location = None if self._is_server else (self.workspace.artifacts / name).absolute().as_uri()
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except MlflowException:
            found = self._client.get_experiment_by_name(name)  # another process may have just created it
            if found is None:
                raise
            return str(found.experiment_id)

    def _unfinished(self, experiment: str, fingerprint: str) -> str | None:
        with translated(self.uri):
            runs = self._client.search_runs(
                [self._experiment(experiment)],
                f"tags.`{FINGERPRINT}` = '{fingerprint}' and attributes.status != 'FINISHED'",
                max_results=1,
            )
        return str(runs[0].info.run_id) if runs else None

    def _log_model(self, bundle: Bundle, run: Run, report: Report) -> LoggedModel:
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus
        from mlflow.models import Model

        from registry import flavor

        experiment_id = self._client.get_run(run.id).info.experiment_id
        model = self._client.create_logged_model(
            experiment_id,
            name=bundle.manifest.name,
            source_run_id=run.id,
            tags={_DIGEST: bundle.digest},
            params={"config_sha256": bundle.manifest.config_sha256, "served_variant": bundle.variant},
            model_type=bundle.manifest.family,
        )
        with tempfile.TemporaryDirectory(dir=self.workspace.root, prefix=".register-") as aside:
            written = Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                run_id=run.id,
                model_id=model.model_id,
            )
            flavor.save_model(bundle, Path(aside) / "model", written)
            self._client.log_model_artifacts(model.model_id, str(Path(aside) / "model"))
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        self._client.log_outputs(run.id, [LoggedModelOutput(model.model_id, step=0)])
        run.metrics(_figures(report), model_id=model.model_id)
        return model

    def _create_name(self, name: str, family: FamilyName) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name, tags={"rankyard.family": family})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _registered(self, name: str) -> RegisteredModel:
        check_name(name)
        if self._is_unwritten:
            raise NotFoundError(_none_registered(name))
        from mlflow.exceptions import MlflowException

        with translated(self.uri):
            try:
                return self._client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                known = sorted(model.name for model in _pages(self._client.search_registered_models))
        raise NotFoundError(
            f"a registered model is one of {', '.join(known)}; got {name!r}" if known else _none_registered(name)
        )

    def _aliases_of(self, model: RegisteredModel) -> dict[str, str]:
        return {alias: str(version) for alias, version in sorted(model.aliases.items())}

    def _download(self, version: Version) -> None:
        from mlflow.artifacts import download_artifacts

        from registry.flavor import DATA

        self.workspace.bundles.mkdir(parents=True, exist_ok=True)
        with translated(self.uri), tempfile.TemporaryDirectory(dir=self.workspace.root, prefix=".fetch-") as aside:
            source = self._client.get_model_version_download_uri(version.name, version.version)
            found = download_artifacts(f"{source.rstrip('/')}/{DATA}", dst_path=aside, tracking_uri=self.uri)
            fetched = bundles.open_bundle(Path(found))
            if fetched.digest != version.digest:
                raise BundleError(
                    f"the bundle of {version.ref} must have the digest {version.digest}, {self.uri} has "
                    f"{fetched.digest}; register it again"
                )
            bundles.copy_bundle(fetched, self.workspace.bundles)


def _pages(search: Any, **arguments: Any) -> list[Any]:
    found: list[Any] = []
    page_token = None
    while True:
        page = search(max_results=_PAGE, page_token=page_token, **arguments)
        found += page
        page_token = page.token
        if not page_token:
            return found


def _none_registered(name: str) -> str:
    return f"no model is registered yet, got {name!r}; make one with `rankyard train`"


def _version(version: ModelVersion) -> Version:
    return Version(
        name=version.name,
        version=str(version.version),
        digest=version.tags[_DIGEST],
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        run_id=version.run_id or "",
        metrics=json.loads(version.tags.get(_METRICS, "{}")),
    )


def _judged(report: Report) -> tuple[str, Mapping[str, float]]:
    """The split that a model is known by, and its metrics there."""
    quality = report.served.quality.get(report.known_by)
    return report.known_by, {} if quality is None else quality.metrics


def _version_tags(bundle: Bundle, report: Report) -> dict[str, str]:
    split, metrics = _judged(report)
    main = metrics.get(report.main_metric)
    return {
        _DIGEST: bundle.digest,
        _METRICS: json.dumps(dict(metrics)),
        "rankyard.family": bundle.manifest.family,
        "rankyard.variant": bundle.variant,
        "rankyard.main_metric": report.main_metric,
    } | ({} if main is None else {f"{split}.{metric_name(report.main_metric)}": f"{main:.4f}"})


def _description(bundle: Bundle, report: Report) -> str:
    split, metrics = _judged(report)
    lines = [f"- {name}: {value:.4f}" for name, value in metrics.items()]
    data = [f"- {name}: {one.file}, {one.rows} rows" for name, one in bundle.manifest.data.items()]
    return "\n".join([f"{bundle.manifest.family}, on {split}:", *lines, "", "Data:", *data])


def _figures(report: Report) -> dict[str, float]:
    """What `evaluation.json` says of the served variant, as metrics of the model."""
    served = report.served
    figures = {
        f"{split}.{name}": value for split, quality in served.quality.items() for name, value in quality.metrics.items()
    }
    for call, latency in served.latency.items():
        figures[f"latency.{call}.p50_ms"] = latency.total_p50_ms
        figures[f"latency.{call}.p95_ms"] = latency.total_p95_ms
    figures["size_bytes"] = served.size_bytes
    figures["parity.largest_difference"] = report.parity.largest_difference
    if report.quantization is not None:
        figures["int8.loss"] = report.quantization.loss
    return figures
