"""One trial: on train and valid alone, with what was read, embedded and opened once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config import validate
from models.embedding import SentenceEncoder
from models.errors import ConfigError
from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.tiny_encoder import write_encoder
from tests.training.tuning.rows import lists
from training import pairs, ranking
from training.data.splits import Splits
from training.tuning.config import TuneConfig
from training.tuning.space import Space
from training.tuning.trial import Bench


class Notes:
    """A run and a terminal that keep what they are told."""

    def __init__(self, stop_at: int = -1) -> None:
        self.curves: dict[str, list[int]] = {}
        self.sentences: list[str] = []
        self._stop_at = stop_at

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for name in values:
            self.curves.setdefault(name, []).append(step)
        if step == self._stop_at:
            raise KeyboardInterrupt

    def progress(self, stage: str, done: int, total: int) -> None:
        assert done <= total, stage

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)


def rows(n_queries: int, seed: int, words: list[str]) -> str:
    rng = np.random.default_rng(seed)
    lines = []
    for query in range(n_queries):
        for document in range(5):
            title = f"{rng.choice(words)} {rng.choice(words)} {document}"
            label = int(rng.integers(0, 3)) if document else 1
            row = {"query_id": f"{seed}-{query}", "query": words[query % len(words)], "doc_id": f"{document}"}
            lines.append(json.dumps(row | {"title": title, "label": label}))
    return "\n".join(lines) + "\n"


TREES = {
    "task": "ranking",
    "model": {"kind": "xgboost"},
    "training": {"n_trees": 10, "patience": 10, "n_threads": 1, "min_child_weight": 0},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lists")
    (directory / "train.txt").write_text(lists(30, 1))
    (directory / "test.txt").write_text(lists(6, 2))
    return directory


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_encoder(tmp_path_factory.mktemp("encoder")))


def bench(base: dict[str, Any], data: Path, **settings: Any) -> tuple[Bench, Space]:
    config = validate(TuneConfig, {"base": "b", **settings})
    space = Space.of(config, base, base["task"])
    return Bench(config, space, data, Tracking(Workspace(data / "none"))), space


DEPTH = {"space": {"training.max_depth": {"low": 1, "high": 6}}}


def carry_out(here: Bench, space: Space, params: dict[str, Any], scratch: Path, notes: Notes | None = None) -> Any:
    reported: list[tuple[int, float]] = []
    notes = notes or Notes()
    outcome = here.run(
        space.config(params),
        notes,
        notes,
        lambda value, step: reported.append((step, value)),
        scratch,  # type: ignore[arg-type]
    )
    return outcome, reported


def test_no_trial_is_given_the_test_split(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Splits[Any]] = []
    honest = ranking.fit
    monkeypatch.setattr(
        ranking, "fit", lambda config, splits, *rest: seen.append(splits) or honest(config, splits, *rest)
    )
    here, space = bench(TREES, data, **DEPTH)
    outcome, _ = carry_out(here, space, {"training.max_depth": 2}, tmp_path)
    assert [splits.test for splits in seen] == [None]
    assert "test" not in str(outcome.figures)
    assert set(here.digests) == {"train", "valid"}


def test_texts_are_embedded_and_the_encoder_is_exported_once_for_all_trials(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["red", "blue", "shoe", "shirt", "nike"]
    (tmp_path / "train.jsonl").write_text(rows(20, 1, words))
    base = TREES | {"model": {"kind": "pairs", "encoder": encoder, "max_tokens": 32}}
    embedded: list[str] = []
    exported: list[Any] = []
    embed, write = SentenceEncoder.embed, pairs._write_encoder
    monkeypatch.setattr(SentenceEncoder, "embed", lambda self, text: embedded.append(text) or embed(self, text))
    monkeypatch.setattr(pairs, "_write_encoder", lambda *given: exported.append(given) or write(*given))
    here, space = bench(base, tmp_path, repeats=2, **DEPTH)
    carry_out(here, space, {"training.max_depth": 2}, tmp_path)
    n_first = len(embedded)
    for depth in (3, 5):
        carry_out(here, space, {"training.max_depth": depth}, tmp_path)
    assert len(embedded) == n_first
    assert len(exported) == 1


def test_a_trial_is_the_mean_over_its_seeds_each_with_a_part_of_its_own_held_out(data: Path, tmp_path: Path) -> None:
    both, space = bench(TREES, data, repeats=2, **DEPTH)
    notes = Notes()
    outcome, reported = carry_out(both, space, {"training.max_depth": 2}, tmp_path, notes)
    alone = []
    for seed in (13, 14):
        one, its = bench(TREES | {"training": {**TREES["training"], "seed": seed}}, data, **DEPTH)
        alone.append(carry_out(one, its, {"training.max_depth": 2}, tmp_path)[0].values[0])
    assert alone[0] != alone[1]
    assert outcome.values == (pytest.approx(np.mean(alone)),)
    assert reported == [(1, pytest.approx(alone[0])), (2, pytest.approx(np.mean(alone)))]
    assert set(notes.curves) == {"valid_ndcg@10.seed_13", "valid_ndcg@10.seed_14"}


def test_a_base_that_trains_in_several_processes_is_refused(encoder: str, data: Path) -> None:
    network = {
        "task": "intent",
        "model": {"kind": "transformer", "encoder": encoder},
        "training": {"engine": "torchrun", "n_processes": 2},
    }
    with pytest.raises(ConfigError, match="a trial trains in its own process"):
        bench(network, data, space={"training.head_learning_rate": [0.001, 0.002]})


def test_the_curve_of_a_single_training_is_reported_as_it_grows(data: Path, tmp_path: Path) -> None:
    here, space = bench(TREES, data, **DEPTH)
    _, reported = carry_out(here, space, {"training.max_depth": 2}, tmp_path)
    assert [step for step, _ in reported] == [1, 5, 10]


def test_what_is_no_objective_is_not_timed(data: Path, tmp_path: Path) -> None:
    plain, space = bench(TREES, data, **DEPTH)
    timed, _ = bench(TREES, data, objectives=["quality", "size", "latency"], latency_call="list_10", **DEPTH)
    first, _ = carry_out(plain, space, {"training.max_depth": 2}, tmp_path)
    second, _ = carry_out(timed, space, {"training.max_depth": 2}, tmp_path)
    assert first.values == second.values[:1]
    assert not [name for name in first.figures if "latency" in name]
    assert second.values[1:] == (second.figures["size_bytes"], second.figures["latency.list_10.p50_ms"])


def test_a_network_that_was_interrupted_goes_on_in_the_trial_that_takes_its_place(encoder: str, tmp_path: Path) -> None:
    texts = [{"text": f"{word} {n}", "label": word} for n in range(8) for word in ("shoe", "shirt")]
    for split in ("train", "valid"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    model = {"kind": "transformer", "encoder": encoder, "max_tokens": 16}
    network = {"task": "intent", "model": model, "training": {"epochs": 3}, "quantize": {"enabled": False}}
    here, space = bench(network, tmp_path, space={"training.head_learning_rate": [0.001, 0.002]})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(KeyboardInterrupt):
        carry_out(here, space, {}, scratch, Notes(stop_at=2))
    notes = Notes()
    carry_out(here, space, {}, scratch, notes)
    assert [sentence for sentence in notes.sentences if "training goes on from step 2 of 3" in sentence]
    assert notes.curves["valid_accuracy"] == [3]
    assert list(scratch.iterdir()) == []
