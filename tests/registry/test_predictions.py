import contextlib
import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BundleError
from models.metrics import Ratio
from registry.predictions import PREDICTIONS, Predictions


def name(text):
    return hashlib.sha256(text.encode()).digest()[:16]


def predictions(texts="abca", **fields):
    n = len(texts)
    ratio = Ratio(np.arange(n, dtype=np.float64), np.ones(n))
    return Predictions(tuple(name(text) for text in texts), {"accuracy": ratio}, **fields)


def test_what_was_saved_is_loaded(tmp_path):
    saved = predictions(
        slices={"class=größe/a b": np.array([True, False, True, True]), "words=1": np.zeros(4, dtype=bool)},
        answers={"label": np.arange(4), "confidence": np.full(4, 0.5, np.float32)},
    )
    saved.save(tmp_path)
    loaded = Predictions.load(tmp_path)
    assert loaded.example_ids == saved.example_ids
    assert loaded.ratios["accuracy"].value == saved.ratios["accuracy"].value
    assert {key: mask.tolist() for key, mask in loaded.slices.items()} == {
        key: mask.tolist() for key, mask in saved.slices.items()
    }
    assert {key: (array.dtype, array.tolist()) for key, array in loaded.answers.items()} == {
        key: (array.dtype, array.tolist()) for key, array in saved.answers.items()
    }


def test_an_id_that_ends_in_zero_bytes_survives(tmp_path):
    ids = (b"\0" * 16, b"a" + b"\0" * 15)
    Predictions(ids, {}).save(tmp_path)
    assert Predictions.load(tmp_path).example_ids == ids


def test_no_examples_at_all_survive_too(tmp_path):
    Predictions((), {}).save(tmp_path)
    assert len(Predictions.load(tmp_path)) == 0


def test_equal_predictions_give_equal_bytes(tmp_path):
    for directory in ("one", "two"):
        (tmp_path / directory).mkdir()
        predictions().save(tmp_path / directory)
    assert (tmp_path / "one" / PREDICTIONS).read_bytes() == (tmp_path / "two" / PREDICTIONS).read_bytes()


def test_examples_are_paired_by_content_and_copies_by_occurrence():
    mine, theirs = predictions("abcab"), predictions("xbaay")
    assert [side.tolist() for side in mine.paired(theirs)] == [[0, 1, 3], [2, 1, 3]]


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_pairing_uses_every_common_example_once(mine, theirs):
    left, right = predictions(mine).paired(predictions(theirs))
    assert [mine[i] for i in left] == [theirs[i] for i in right]
    assert len(set(right.tolist())) == len(right) == sum(min(mine.count(x), theirs.count(x)) for x in "abc")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(BundleError, match=r"must hold predictions\.npz"):
        Predictions.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off", b"\x93NUMPY\x01\x00"])
def test_a_broken_file_is_refused(tmp_path, content):
    (tmp_path / PREDICTIONS).write_bytes(content)
    with pytest.raises(BundleError, match="must be predictions as written by training"):
        Predictions.load(tmp_path)


def test_any_flipped_byte_is_refused_or_harmless(tmp_path):
    predictions().save(tmp_path)
    whole = (tmp_path / PREDICTIONS).read_bytes()
    for place in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        (tmp_path / PREDICTIONS).write_bytes(broken)
        with contextlib.suppress(BundleError):
            assert len(Predictions.load(tmp_path)) == 4


def test_a_pickled_object_is_refused_and_never_loaded(tmp_path):
    np.savez(tmp_path / PREDICTIONS, example_ids=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BundleError, match="allow_pickle=False"):
        Predictions.load(tmp_path)


def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path):
    predictions().save(tmp_path)
    with np.load(tmp_path / PREDICTIONS) as stored:
        arrays = dict(stored)
    arrays["numerators"] = arrays["numerators"][:, :2]
    np.savez(tmp_path / PREDICTIONS, **arrays)
    with pytest.raises(BundleError, match=r"numerators are float64 \(1, 2\), not float64 \(1, 4\)"):
        Predictions.load(tmp_path)
