"""`rankyard tune` from the command line: one study, however many processes and kills it takes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

import rankyard
from models.config import read
from tests.training.tuning.rows import lists
from training import ranking
from training.config import parse
from training.tuning import trials
from training.tuning import tune as tuning
from training.tuning.trial import Bench

ROOT = Path(__file__).parents[3]
Run = Callable[..., tuple[int, Any, str]]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with data, a base configuration, and one workspace for all tests: MLflow begins slowly."""
    directory = tmp_path_factory.mktemp("tune")
    (directory / "data").mkdir()
    for split, n_queries, seed in (("train", 40, 1), ("valid", 15, 2), ("test", 15, 3)):
        (directory / "data" / f"{split}.txt").write_text(lists(n_queries, seed))
    training = {"n_trees": 10, "patience": 10, "n_threads": 1, "learning_rate": 0.2}
    base = {"task": "ranking", "model": {"kind": "xgboost"}, "training": training, "evaluate": {"n_resamples": 100}}
    (directory / "base.yaml").write_text(yaml.safe_dump(base))
    return directory


@pytest.fixture
def tune(here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a study called `name`; gives exit status, the JSON answer, and standard error."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(name: str, n_trials: int, *more: str, **settings: Any) -> tuple[int, Any, str]:
        capfd.readouterr()
        status = rankyard.main(command(here, name, n_trials, *more, **settings))
        captured = capfd.readouterr()
        return status, json.loads(captured.out or "null"), captured.err

    return call


def command(here: Path, name: str, n_trials: int, *more: str, **settings: Any) -> list[str]:
    space = {"training.max_depth": {"low": 1, "high": 8}, "training.l2": {"low": 0.1, "high": 50, "log": True}}
    study = {"base": "base.yaml", "space": space, "sampler": "random"} | settings
    (here / f"{name}.yaml").write_text(yaml.safe_dump(study))
    given = ["--config", here / f"{name}.yaml", "--data", here / "data", "--name", name, "--workspace", here / "work"]
    return ["tune", "ranking", *map(str, given), "--trials", str(n_trials), "--json", *more]


@pytest.fixture(scope="module")
def plain(here: Path) -> dict[str, Any]:
    """What a study of four trials answers."""
    return rankyard._call(command(here, "plain", 4))


FRONT = {
    "space": {"training.n_trees": {"low": 1, "high": 40}, "training.max_depth": [2, 6]},
    "objectives": ["quality", "size"],
}


@pytest.fixture(scope="module")
def front(here: Path) -> dict[str, Any]:
    """What a study of quality and size answers."""
    return rankyard._call(command(here, "front", 4, **FRONT))


def client(here: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{here}/work/mlflow.db")


def children(here: Path, run_id: str) -> list[Any]:
    mlflow = client(here)
    experiment = mlflow.get_run(run_id).info.experiment_id
    found = mlflow.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'")
    return sorted(found, key=lambda run: int(run.data.tags["rankyard.trial"]))


def test_the_best_configuration_is_one_that_train_takes_and_that_gives_what_the_trial_gave(
    plain: dict[str, Any], here: Path
) -> None:
    assert {"name", "version", "run_id", "bundle", "metrics", "seconds"} <= set(plain)
    assert plain["trials"] == {"complete": 4, "stopped early": 0, "failed": 0}
    assert plain["best"]["values"]["quality"] >= plain["base"]["values"]["quality"]
    assert plain["metrics"]["valid"]["ndcg@10"] == pytest.approx(plain["best"]["values"]["quality"], abs=1e-12)
    config = parse(read(plain["best_config"]), "ranking")
    manifest = json.loads((Path(plain["bundle"]) / "manifest.json").read_text())
    assert manifest["config"] == config.model_dump(mode="json")
    header = Path(plain["best_config"]).read_text().splitlines()[0]
    assert header.startswith(f"# Trial {plain['best']['trial']} of the study {plain['study']}: quality 0.")
    versions = client(here).search_model_versions("name='plain'")
    assert [str(version.version) for version in versions] == [plain["version"]]


def test_every_trial_is_a_run_within_the_studys_run_which_shows_pictures(front: dict[str, Any], here: Path) -> None:
    mlflow = client(here)
    parent = mlflow.get_run(front["study_run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["training.learning_rate"] == "0.2"
    runs = children(here, parent.info.run_id)
    assert [run.data.tags["rankyard.state"] for run in runs] == ["complete"] * 4
    best = runs[front["best"]["trial"]].data
    assert best.metrics["objective.quality"] == front["best"]["values"]["quality"]
    facts = {"fit.n_trees", "fit.n_grown_trees", "fit.valid_ndcg_at_10"}
    assert set(best.params) == {"training.max_depth", "training.n_trees"} | facts
    assert not [name for name in best.metrics if "test" in name]
    pictures = {file.path for file in mlflow.list_artifacts(parent.info.run_id, "pictures")}
    assert {f"pictures/{name}.png" for name in ("history", "keys", "front_size", "importance")} <= pictures
    table = Path(mlflow.download_artifacts(parent.info.run_id, "trials.csv", str(here))).read_text().splitlines()
    assert table[0] == "trial,state,quality,size,seconds,training.max_depth,training.n_trees"
    assert len(table) == 5


def test_a_budget_chooses_from_the_front(front: dict[str, Any], tune: Run) -> None:
    sizes = sorted(trial["values"]["size"] for trial in front["front"])
    assert all(parse(read(trial["config"]), "ranking") for trial in front["front"])
    _, bound, said = tune("front", 4, **FRONT, budget={"size": sizes[0]})
    assert "with several objectives no trial is stopped early" in said
    assert bound["study"] == front["study"]
    assert bound["best"]["values"]["size"] == sizes[0]
    status, _, said = tune("front", 4, **FRONT, budget={"size": 10})
    assert status == 1
    assert f"a trial must be within the budget, none of 4 is: the least size is {sizes[0]:g}, the budget 10" in said


def test_the_same_command_goes_on_and_trains_again_only_what_is_better(tune: Run, here: Path) -> None:
    _, first, said = tune("again", 2)
    assert "begins: 2 trials" in said
    _, second, said = tune("again", 2)
    assert "has its 2 trials" in said
    assert {key: second[key] for key in ("version", "best", "bundle")} == {
        key: first[key] for key in ("version", "best", "bundle")
    }
    _, third, said = tune("again", 3)
    assert "goes on with trial 3 of 3" in said
    assert third["study_run_id"] == first["study_run_id"]
    assert len(children(here, first["study_run_id"])) == 3
    assert int(third["version"]) == 1 + (third["best"]["trial"] == 2)


_KILLED = """
import sys, time
import rankyard
from training.tuning import trials
from training.tuning import tune as tuning
from training.tuning.trial import Bench
honest = Bench.run
def run(*given, **more):
    run.n += 1
    if run.n == 2:
        print("second", flush=True)
        time.sleep(600)
    return honest(*given, **more)
run.n = 0
Bench.run = run
rankyard.main(sys.argv[1:])
"""


def test_a_study_whose_process_was_killed_goes_on_with_the_trial_that_was_lost(
    tune: Run, here: Path, plain: dict[str, Any]
) -> None:
    arguments = command(here, "killed", 4)
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"second\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    status, answer, said = tune("killed", 4)
    assert status == 0
    assert "goes on with trial 3 of 4, 1 are complete" in said
    assert "trial 1 was left unfinished: it is tried again" in said
    assert answer["trials"] == {"complete": 4, "stopped early": 0, "failed": 0}
    assert [run.info.status for run in children(here, answer["study_run_id"])] == [
        "FINISHED", "KILLED", "FINISHED", "FINISHED", "FINISHED"
    ]  # fmt: skip
    # As if nothing had happened: the trials of a study that was never stopped.
    assert answer["best"]["values"] == plain["best"]["values"]


def test_ctrl_c_gives_the_trial_back_and_says_how_to_go_on(
    tune: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Bench.run

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "run", stop)
    status, answer, said = tune("stopped", 2)
    assert (status, answer) == (130, None)
    assert "the same command goes on with the trials that are left" in said
    monkeypatch.setattr(Bench, "run", honest)
    _, answer, said = tune("stopped", 2)
    assert "left unfinished" not in said
    assert answer["base"] is not None
    assert [run.info.status for run in children(here, answer["study_run_id"])] == ["KILLED", "FINISHED", "FINISHED"]


def meet(number: int, order: trials.Order, root: Path, *rest: Any) -> None:
    """Be a worker that carries out its first trial when the other one has a first trial too."""
    honest = trials.Part._try

    def wait_for_both(part: trials.Part, claim: Any) -> None:
        (root / f"worker {number} has a trial").touch()
        give_up_at = time.monotonic() + 300
        while len(list(root.glob("worker * has a trial"))) < 2:
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        honest(part, claim)

    trials.Part._try = wait_for_both  # type: ignore[method-assign]
    tuning._worker(number, order, root, *rest)


def test_workers_share_a_study(tune: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_worker", meet)
    status, answer, said = tune("shared", 4, "--workers", "2")
    assert status == 0, said
    assert answer["trials"]["complete"] == 4
    assert {line.partition(",")[0] for line in said.splitlines() if line.startswith("worker")} == {
        "worker 1",
        "worker 2",
    }
    assert len(client(here).search_model_versions("name='shared'")) == 1


def test_a_trial_that_cannot_be_carried_out_is_a_result_too(tune: Run, here: Path) -> None:
    space = {"model.objective": ["rank:ndcg", "rank:map"]}
    status, answer, said = tune("failing", 5, space=space, seed=1)
    assert status == 0
    assert answer["trials"]["failed"] > 0
    assert answer["trials"]["failed"] + answer["trials"]["complete"] == 5
    assert "failed, model.objective rank:map takes labels 0 and 1" in said
    failed = [run for run in children(here, answer["study_run_id"]) if run.info.status == "FAILED"]
    assert len(failed) == answer["trials"]["failed"]
    assert "takes labels 0 and 1" in failed[0].data.tags["error"]


def test_a_base_that_cannot_be_trained_ends_the_study(tune: Run) -> None:
    status, answer, said = tune("hopeless", 5, "--set", "model.objective=rank:map")
    assert (status, answer) == (2, None)
    assert said.splitlines()[-1].startswith("rankyard: model.objective rank:map takes labels 0 and 1")


def test_trials_that_lead_nowhere_are_stopped_early(tune: Run, here: Path) -> None:
    space = {"training.learning_rate": [0.2, 1.0e-9]}
    pruner = {"kind": "median", "n_startup_trials": 1}
    _, answer, said = tune("pruned", 5, "--set", "training.n_trees=60", space=space, pruner=pruner)
    assert answer["trials"]["stopped early"] > 0
    assert "stopped early with 0." in said
    states = [run.data.tags["rankyard.state"] for run in children(here, answer["study_run_id"])]
    assert states.count("stopped early") == answer["trials"]["stopped early"]


def test_time_ends_a_study_between_trials(tune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only trainings move: half a second each, so that the sixth is the last to begin in time."""
    honest, now_s = ranking.fit, 0.0

    def fit(*given: Any) -> Any:
        nonlocal now_s
        now_s += 0.5
        return honest(*given)

    clock = SimpleNamespace(monotonic=lambda: now_s, perf_counter=time.perf_counter, sleep=time.sleep)
    for module in (tuning, trials):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(ranking, "fit", fit)
    status, answer, _ = tune("timed", 1000, "--timeout", "3")
    assert status == 0
    assert answer["trials"]["complete"] == 6


@pytest.mark.parametrize("option", [("--trials", "0"), ("--timeout", "-1"), ("--workers", "1.5")])
def test_a_number_that_makes_no_sense_is_refused(here: Path, option: tuple[str, str], capfd: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        rankyard.main([*command(here, "plain", 4), *option])
    assert caught.value.code == 2
    assert f"argument {option[0]}: must be a" in capfd.readouterr().err
