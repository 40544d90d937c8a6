"""`rankyard check`: what is in a data directory and whether a workspace holds together, before hours go into either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.config import read
from models.errors import DataError, RankyardError
from registry.bundle import open_bundle
from registry.deployment import names, resolve
from registry.workspace import Workspace
from training.checks.report import PAGE, DataReport, report_on
from training.config import SCHEMAS, TrainConfig, parse
from training.data.clicks import KEYS as CLICK_KEYS
from training.data.clicks import SESSION
from training.data.files import find_splits, read_bytes, read_source
from training.data.jsonl import objects
from training.data.parquet import KEYS, TEXTS, open_table
from training.data.splits import Problems, Splits
from training.line import family_of

if TYPE_CHECKING:
    from registry.tracking import Tracking


def check_data(directory: Path, config: str | None = None) -> DataReport:
    """Read every file as training would and look at what is in it; DataError names what training would refuse.

    config: path or shipped name of what will be trained; None: the default of the family that the files belong to.
    """
    checked = _config_for(directory) if config is None else _config(config)
    splits: Splits[Any] = family_of(checked.task).read(directory, checked)
    return report_on(splits, checked)


def log_data(report: DataReport, directory: Path, tracking: Tracking) -> str:
    """Keep the report in a run of the experiment `data`; gives the run's id."""
    with tracking.start("data", directory.resolve().name or "data") as run:
        run.tags({"data.directory": directory.resolve(), "data.family": report.family})
        run.metrics({finding.rule: finding.value for finding in report.findings})
        run.text(report.html(), PAGE)
        run.describe("\n".join(f"- {line}" for line in report.said(PAGE)))
        return run.id


def check_workspace(workspace: Workspace) -> dict[str, str]:
    """Verify every bundle and published alias: its name maps to "ok" or to the sentence that says why not."""
    found: dict[str, str] = {}
    for path in sorted(workspace.bundles.glob("[!.]*")):
        found[f"bundle {path.name[:12]}"] = _verdict(partial(open_bundle, path))
    for pointer in names(workspace.deployment):
        for alias in pointer.aliases:
            ref = f"{pointer.name}@{alias}"
            found[ref] = _verdict(partial(resolve, workspace.deployment, ref))
    return found


def _config(name_or_path: str) -> TrainConfig:
    raw = read(name_or_path)
    return parse(raw, str(raw.get("task")))


def _config_for(directory: Path) -> TrainConfig:
    """The default configuration of the family that the training file belongs to, by its ending and first row."""
    endings = (".jsonl", ".csv", ".conll", ".txt", ".svm", ".parquet")
    train = find_splits(directory, endings)["train"]
    ending = next(ending for ending in endings if train.name.removesuffix(".gz").endswith(ending))
    if ending == ".parquet":
        task, kind = "ranking", _kind_of_columns(open_table(read_bytes(train), train.name).column_names)
    else:
        task, kind = _BY_ENDING[ending] if ending in _BY_ENDING else _by_keys(train)
    return SCHEMAS[task, kind].model_validate({"task": task, "model": {"kind": kind}})


_BY_ENDING = {
    ".csv": ("intent", "linear"),
    ".conll": ("tagging", "transformer"),
    ".txt": ("ranking", "xgboost"),
    ".svm": ("ranking", "xgboost"),
}
_BY_KEY = {"tokens": ("tagging", "transformer"), "text": ("intent", "linear")}


def _by_keys(train: Path) -> tuple[str, str]:
    source = read_source(train)
    problems = Problems(source.file)
    _, first = next(objects(source, (), problems), (0, {}))
    if "query_id" in first:
        return "ranking", "pairs" if {*TEXTS} <= {*first} else "xgboost"
    for key, family in _BY_KEY.items():
        if key in first:
            return family
    raise DataError(
        f"{train.name} must have rows with tokens (tagging), query_id (ranking) or text (intent), "
        f"its first one has {', '.join(first) or 'nothing'}"
    )


def _kind_of_columns(names: Sequence[str]) -> str:
    """Tell what ranks such a table: texts without numeric columns need features computed from them."""
    features = {*names} - {*KEYS, *CLICK_KEYS, *TEXTS, SESSION}
    return "pairs" if {*TEXTS} <= {*names} and not features else "xgboost"


def _verdict(verify: Callable[[], object]) -> str:
    try:
        verify()
    except RankyardError as error:
        return error.message
    return "ok"
