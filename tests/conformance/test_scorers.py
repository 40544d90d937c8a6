"""Whatever scores trees gives the scores of ONNX Runtime and of XGBoost, to the last bit."""

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numba
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ConfigError, ParityError, RankyardError
from models.session import OnnxSession
from models.trees import read_trees
from serving.runtime import booster as booster_module
from serving.runtime import compiled, scorers
from serving.runtime.booster import BoosterScorer
from serving.runtime.compiled import CompiledScorer
from serving.runtime.scorers import OnnxScorer, SizedScorer, choose, proof_rows
from tests.bundles import tiny_bundle
from tests.tree_bundle import grow, rows, tree_bundle
from training.trees import export_trees

OTHERS = {"xgboost": BoosterScorer, "numba": CompiledScorer}
KINDS = ["onnx", *OTHERS]


def score(scorer, features):
    return scorer.run({"features": features})["score"]


def open_scorer(kind, file):
    return OnnxScorer(OnnxSession(file)) if kind == "onnx" else OTHERS[kind](read_trees(file))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999),
    n_trees=st.integers(1, 30),
    depth=st.integers(1, 7),
    base_score=st.sampled_from([0.0, 2.5, -1e4]),
)
def test_scores_are_xgboosts_own_bits_at_every_length(kind, tmp_path_factory, seed, n_trees, depth, base_score):
    booster = grow(n_trees, seed, max_depth=depth, base_score=base_score)
    file = tmp_path_factory.mktemp("trees") / "model.onnx"
    onnx.save_model(export_trees(booster), str(file))
    scorer = open_scorer(kind, file)
    features = np.concatenate([rows(150, seed + 1), proof_rows(read_trees(file), 150)])
    features[3] = np.nan
    for n in (300, 65, 64, 2, 1):
        expected = booster.inplace_predict(features[:n])
        assert score(scorer, features[:n]).tobytes() == expected.tobytes()
    # A matrix by column, as `candidates` makes it, is the same.
    assert score(scorer, np.asfortranarray(features)).tobytes() == booster.inplace_predict(features).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_read_as_they_come(kind, tmp_path):
    """Out of a request's body, which nobody may write to, at any byte of it; and no other number of features."""
    booster = grow(20)
    onnx.save_model(export_trees(booster), str(tmp_path / "model.onnx"))
    scorer = open_scorer(kind, tmp_path / "model.onnx")
    features = rows(40, 1)
    for before in (b"", b"{"):
        body = before + features.tobytes()
        sent = np.frombuffer(body, np.float32, offset=len(before)).reshape(features.shape)
        assert not sent.flags.writeable
        assert score(scorer, sent).tobytes() == booster.inplace_predict(features).tobytes()
    for wrong in (features[:, 1:], np.concatenate([features, features], axis=1), features[0]):
        with pytest.raises((RankyardError, IndexError)):
            score(scorer, wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_get_their_own_scores(kind, tmp_path):
    booster = grow(50)
    onnx.save_model(export_trees(booster), str(tmp_path / "model.onnx"))
    scorer = open_scorer(kind, tmp_path / "model.onnx")
    lists = [rows(n, n) for n in range(1, 120)]
    expected = [booster.inplace_predict(features) for features in lists]
    with ThreadPoolExecutor(4) as threads:
        for found, wanted in zip(threads.map(partial(score, scorer), lists * 5), expected * 5, strict=True):
            assert found.tobytes() == wanted.tobytes()


class Named:
    """Gives its own number as every score."""

    def __init__(self, name: str, number: float) -> None:
        self.name, self.number = name, number

    def run(self, arrays):
        return {"score": np.full(len(arrays["features"]), self.number, np.float32)}


def test_each_length_goes_to_its_scorer():
    a, b = Named("a", 1), Named("b", 2)
    sized = SizedScorer((1, 4, 16), (a, a, b))
    found = [float(sized.run({"features": np.zeros((n, 1), np.float32)})["score"][0]) for n in (1, 4, 5, 16, 17, 999)]
    assert found == [1, 1, 2, 2, 2, 2]
    assert str(sized) == "a from 1, b from 5"


def test_the_fastest_of_each_length_is_found_within_its_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(scorers.time, "thread_time", lambda: now[0])

    class Takes(Named):
        def run(self, arrays):
            now[0] += self.number + len(arrays["features"]) * (1e-4 if self.name == "steep" else 1e-6)
            return super().run(arrays)

    steep, flat = Takes("steep", 1e-4), Takes("flat", 1e-3)
    sizes, fastest = scorers.calibrate([steep, flat], np.zeros((1024, 2), np.float32), 10)
    # 0.1 + 0.1 n against 1 + 0.001 n milliseconds: equal at 9.1.
    assert dict(zip(sizes, [one.name for one in fastest], strict=True)) == {
        n: "steep" if n <= 8 else "flat" for n in scorers.SIZES
    }
    started = now[0]
    sizes, _ = scorers.calibrate([steep, flat], np.zeros((1024, 2), np.float32), 0.02)
    assert now[0] - started < 0.04
    assert sizes == scorers.SIZES[: len(sizes)] != scorers.SIZES


def test_a_bundle_of_trees_is_scored_by_what_is_equal(tmp_path):
    booster = grow(40)
    bundle = tree_bundle(tmp_path, booster)
    file = bundle.model_file()
    sized = choose(bundle, file, OnnxSession(file), None)
    assert {scorer.name for scorer in sized.scorers} <= set(KINDS)
    for n in (1, 30, 2000):
        features = rows(n, n)
        assert sized.run({"features": features})["score"].tobytes() == booster.inplace_predict(features).tobytes()


def test_there_is_nothing_to_choose_for_other_models_or_by_onnx_alone(tmp_path):
    tiny, trees = tiny_bundle(tmp_path, "ranking"), tree_bundle(tmp_path, grow(2))
    assert choose(tiny, tiny.model_file(), OnnxSession(tiny.model_file()), None) is None
    assert choose(trees, trees.model_file(), OnnxSession(trees.model_file()), ("onnx",)) is None


class Wrong(BoosterScorer):
    """Off by the last bit of one score of many."""

    def run(self, arrays):
        scores_D = score(super(), arrays["features"])
        scores_D[-1] = np.nextafter(scores_D[-1], np.float32(np.inf))
        return {"score": scores_D}


def test_a_scorer_that_differs_by_a_bit_is_not_used(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(scorers, "_OTHERS", (Wrong,))
    bundle = tree_bundle(tmp_path, grow(10))
    session = OnnxSession(bundle.model_file())
    with caplog.at_level(logging.WARNING, "rankyard.gateway"):
        sized = choose(bundle, bundle.model_file(), session, None)
    assert {scorer.name for scorer in sized.scorers} == {"onnx"}
    assert "must be equal to onnx's bit by bit" in caplog.text
    with pytest.raises(ParityError, match="leave xgboost out"):
        choose(bundle, bundle.model_file(), session, ("onnx", "xgboost"))


def test_without_other_libraries_trees_are_scored_by_onnx_and_to_name_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(booster_module, "_library", lambda: None)
    monkeypatch.setattr(CompiledScorer, "is_installed", staticmethod(lambda: False))
    bundle = tree_bundle(tmp_path, grow(2))
    session = OnnxSession(bundle.model_file())
    assert choose(bundle, bundle.model_file(), session, None) is None
    for name in OTHERS:
        with pytest.raises(ConfigError, match=f"pip install 'rankyard\\[{name}\\]'"):
            choose(bundle, bundle.model_file(), session, ("onnx", name))


@pytest.mark.parametrize("kind", OTHERS)
def test_trees_that_a_scorer_cannot_hold_are_scored_by_onnx(kind, tmp_path, monkeypatch, caplog):
    """A threshold of infinity: what is missing could not be told from what is as large."""
    monkeypatch.setattr(scorers, "_OTHERS", (OTHERS[kind],))
    monkeypatch.setattr(scorers, "read_trees", lambda file: endless(read_trees(file)))
    bundle = tree_bundle(tmp_path, grow(3))
    with caplog.at_level(logging.WARNING, "rankyard.gateway"):
        sized = choose(bundle, bundle.model_file(), OnnxSession(bundle.model_file()), None)
    assert {scorer.name for scorer in sized.scorers} == {"onnx"}
    assert "must be finite" in caplog.text


def endless(trees):
    thresholds = trees.thresholds.copy()
    thresholds[np.flatnonzero(~trees.is_leaf)[0]] = np.inf
    return replace(trees, thresholds=thresholds)


def test_a_library_that_cannot_be_loaded_leaves_trees_to_the_others(tmp_path, monkeypatch, caplog):
    """numba refuses to be imported beside a numpy or an llvmlite that it does not know."""
    bundle = tree_bundle(tmp_path, grow(3))
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs another version')")
    compiled._compiled.cache_clear()
    monkeypatch.delitem(sys.modules, "numba")
    monkeypatch.syspath_prepend(tmp_path)
    with caplog.at_level(logging.WARNING, "rankyard.gateway"):
        sized = choose(bundle, bundle.model_file(), OnnxSession(bundle.model_file()), None)
    assert {scorer.name for scorer in sized.scorers} <= {"onnx", "xgboost"}
    assert "is not scored by numba: numba cannot be loaded: Numba needs another version" in caplog.text


def test_a_tree_too_large_to_be_walked_is_refused(tmp_path):
    """Two bytes say how far on a child is."""
    booster = grow(1, max_depth=2)
    onnx.save_model(export_trees(booster), str(tmp_path / "model.onnx"))
    wide = replace(read_trees(tmp_path / "model.onnx"), n_features=40_000)
    with pytest.raises(RankyardError, match="at most 65535 nodes each and 32767 features"):
        CompiledScorer(wide)


def test_nowhere_to_keep_machine_code_is_no_reason_not_to_run_it(tmp_path, monkeypatch):
    monkeypatch.setattr(numba, "njit", without_a_cache(numba.njit))
    compiled._compiled.cache_clear()
    booster = grow(5)
    onnx.save_model(export_trees(booster), str(tmp_path / "model.onnx"))
    features = rows(40, 1)
    found = score(CompiledScorer(read_trees(tmp_path / "model.onnx")), features)
    compiled._compiled.cache_clear()
    assert found.tobytes() == booster.inplace_predict(features).tobytes()


def without_a_cache(njit):
    def compile_(*arguments, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function '_walk': no locator available")
        return njit(*arguments, **options)

    return compile_
