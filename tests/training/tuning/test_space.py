"""The YAML of a study: every mistake is said before anything runs, and what is suggested is a checked configuration."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from models.config import read, shipped, validate
from models.errors import ConfigError
from training.config import parse
from training.tuning.config import TuneConfig
from training.tuning.space import Space, read_tuning

LINEAR = {"task": "intent", "model": {"kind": "linear"}}
TREES = {"task": "ranking", "model": {"kind": "xgboost"}}


def space(entries: dict[str, Any], base: dict[str, Any] | None = None, **settings: Any) -> Space:
    base = base or TREES
    return Space.of(validate(TuneConfig, {"base": "b", "space": entries, **settings}), base, base["task"])


def mistakes(entries: dict[str, Any], **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        space(entries, **settings)
    return caught.value.message


def test_every_mistake_of_a_space_is_said_at_once_with_its_key() -> None:
    found = mistakes(
        {
            "training.learning_rat": {"low": 0.1, "high": 0.2},
            "training.max_depth": {"low": 0, "high": 3},
            "training.pair_method": ["topk", "all"],
            "training.min_child_weight": {"low": -1, "high": -0.5},
            "model": ["a", "b"],
            "training.seed": {"low": 1, "high": 2},
            "model.objective": {"low": 1, "high": 2},
            "training.n_trees": {"low": 10, "high": 20.5},
        }
    )
    for part in (
        "space.training.learning_rat: is not a key of the base configuration; did you mean learning_rate?",
        "space.training.max_depth: must be above 0, got 0; correct it",
        "space.training.pair_method: must be 'topk' or 'mean', got 'all'",
        "space.training.min_child_weight: must be at least 0, got -1",
        "got -0.5",
        "space.model: holds keys; name one of them",
        "space.training.seed: cannot be searched: a lucky seed",
        "space.model.objective: is not a number; give a list of values",
        "space.training.n_trees: takes whole numbers, got low 10, high 20.5",
    ):
        assert part in found


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ({"low": 2, "high": 1}, "low must be below high"),
        ({"low": 0, "high": 1, "log": True}, "low must be above 0 with log"),
        ({"low": 1, "high": 2, "log": True, "step": 0.5}, "step and log exclude each other"),
        ({"low": 1, "high": 2, "step": 0.3}, "high must be low and a multiple of step"),
        ({"low": 1}, "high must be given"),
        ({"low": 1, "high": 2, "lgo": True}, "lgo is not a key"),
        ([0.1], "at least 2 items"),
        (0.1, "must be a range {low: , high: } or a list"),
        ([0.1, 0.1], "must be different values"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(entry: Any, rule: str) -> None:
    assert rule in mistakes({"training.l2": entry})


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"objectives": ["size"]}, "objectives must be quality and then"),
        ({"objectives": ["quality", "size", "size"]}, "objectives must be quality and then"),
        ({"budget": {"size": 10}}, "budget bounds size, which is not one of objectives"),
        ({"objectives": ["quality", "size"], "pruner": {"kind": "median"}}, "pruner works with one objective"),
        ({"latency_call": "list_100"}, "latency_call does nothing unless latency is one of objectives"),
        ({"objectives": ["quality", "latency"], "latency_call": "batch_1"}, "latency_call must be one of list_10"),
        ({"sampler": "random", "n_startup_trials": 3}, "n_startup_trials does nothing with sampler random"),
        ({"repeats": 0}, "repeats"),
    ],
)
def test_a_setting_that_does_nothing_is_refused(settings: dict[str, Any], rule: str) -> None:
    assert rule in mistakes({"training.l2": [1, 2]}, **settings)


def test_whole_numbers_and_fractions_are_those_of_the_schema() -> None:
    found = space({"training.max_depth": {"low": 2, "high": 6}, "training.l2": {"low": 1, "high": 30}}).distributions
    assert found["training.max_depth"] == optuna.distributions.IntDistribution(2, 6)
    assert found["training.l2"] == optuna.distributions.FloatDistribution(1, 30)


def test_a_suggestion_is_a_checked_configuration_with_values_that_a_person_can_read() -> None:
    here = space({"training.l2": {"low": 1, "high": 30}, "training.max_depth": {"low": 2, "high": 6}})
    config = here.config({"training.l2": 2.345678901, "training.max_depth": 3})
    assert config == parse(TREES | {"training": {"l2": 2.346, "max_depth": 3}}, "ranking")
    assert here.base == TREES


def test_a_rounded_value_stays_in_its_range() -> None:
    here = space({"training.l2": {"low": 1.00004, "high": 2}})
    assert here.values({"training.l2": 1.00004}) == {"training.l2": 1.00004}


def test_lists_are_values_too() -> None:
    here = space({"model.char_ngrams": [[2, 4], [3, 5]]}, LINEAR)
    [suggested] = here.distributions["model.char_ngrams"].choices[1:]  # type: ignore[attr-defined]
    assert here.config({"model.char_ngrams": suggested}).model.char_ngrams == (3, 5)


@pytest.mark.parametrize(
    ("entries", "is_inside"),
    [
        ({"training.l2": {"low": 0.5, "high": 2}, "training.pair_method": ["mean", "topk"]}, True),
        ({"training.l2": {"low": 2, "high": 3}}, False),
        ({"training.n_trees": {"low": 100, "high": 1300, "step": 300}}, True),
        ({"training.n_trees": {"low": 100, "high": 1100, "step": 500}}, False),
        ({"training.subsample": [0.5, 0.6]}, False),
        ({"training.subsample": [0.5, 0.8]}, True),
    ],
)
def test_the_base_configuration_is_a_suggestion_where_it_lies_in_the_space(
    entries: dict[str, Any], is_inside: bool
) -> None:
    here = space(entries)
    found = here.of_base()
    assert (found is not None) == is_inside
    if found is not None:
        assert here.config(found) == parse(TREES, "ranking")


def test_a_base_is_found_beside_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(TREES | {"training": {"n_trees": 7}}))
    study = {"base": "mine.yaml", "space": {"training.l2": [1, 2]}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    _, found = read_tuning(str(tmp_path / "study.yaml"), ["training.max_depth=3"], "ranking")
    assert (found.config({}).training.n_trees, found.config({}).training.max_depth) == (7, 3)


@pytest.mark.parametrize("name", [name for name in shipped() if name.startswith("tune_")])
def test_a_shipped_study_begins_with_its_base(name: str) -> None:
    task = read(read(name)["base"])["task"]
    _, found = read_tuning(name, [], task)
    assert found.of_base() is not None
