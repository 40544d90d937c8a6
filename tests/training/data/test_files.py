"""Finding, reading and splitting the files of a data directory, and refusing those that break a rule."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import DataError
from training.data.files import find_splits, hold_out, read_file, read_source, read_splits, refuse_bad_rows
from training.data.jsonl import read_intent_jsonl
from training.data.splits import IntentRows, Problems

ENDINGS = (".jsonl", ".csv")
ROW = '{"text": "red shoes %d", "label": "%s"}\n'


def write(directory: Path, **files: str) -> Path:
    for name, content in files.items():
        (directory / name.replace("_", ".", 1)).write_text(content, encoding="utf-8")
    return directory


def test_splits_are_found_by_name_and_ending_zipped_or_not(tmp_path: Path) -> None:
    write(tmp_path, train_jsonl="x", vali_csv="x", notes_txt="x")
    (tmp_path / "test.jsonl.gz").write_bytes(b"x")
    found = find_splits(tmp_path, ENDINGS)
    assert {split: path.name for split, path in found.items()} == {
        "train": "train.jsonl",
        "valid": "vali.csv",
        "test": "test.jsonl.gz",
    }


def test_a_directory_that_is_absent_lacks_train_or_has_a_split_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a data directory must exist, got .*nowhere"):
        find_splits(tmp_path / "nowhere", ENDINGS)
    with pytest.raises(DataError, match="holds nothing"):
        find_splits(tmp_path, ENDINGS)
    write(tmp_path, train_txt="x")
    with pytest.raises(DataError, match=r"must hold train\.jsonl or train\.csv .* holds train\.txt"):
        find_splits(tmp_path, ENDINGS)
    write(tmp_path, train_csv="x", valid_csv="x", vali_csv="x")
    with pytest.raises(DataError, match=r"one file, got valid\.csv and vali\.csv in .*; move all but one away"):
        find_splits(tmp_path, ENDINGS)


def test_a_zipped_file_reads_as_the_plain_one(tmp_path: Path) -> None:
    content = "\ufeffone\r\ntwo \u2028 still two\n\nfour\n".encode()
    (tmp_path / "train.csv").write_bytes(content)
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(content))
    plain, zipped = read_source(tmp_path / "train.csv"), read_source(tmp_path / "train.csv.gz")
    assert plain.lines == zipped.lines == ("one", "two \u2028 still two", "", "four")
    assert plain.sha256 == zipped.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", b"", "train.csv must have at least one row, it is empty"),
        ("train.csv", b"\n \n", "it is empty"),
        ("train.csv", b"text\nab\xffc\n", "train.csv must be UTF-8, line 2 has 0xff as its byte 3"),
        ("train.csv.gz", b"text", "train.csv.gz must be whole gzip data"),
        ("train.csv.gz", gzip.compress(b"text" * 100)[:-9], "train.csv.gz must be whole gzip data"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_source(tmp_path / name)


def test_an_absent_file_and_an_unknown_ending_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl must be readable, got: No such file"):
        read_source(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match=r"must end in \.jsonl .*, got rows\.xml"):
        read_file(tmp_path / "rows.xml", {".jsonl": read_intent_jsonl})


def test_bad_rows_are_counted_and_the_first_three_said() -> None:
    problems = Problems("train.csv")
    for line in (2, 4, 7, 9, 11):
        problems.add(line, "label must not be blank")
    with pytest.raises(DataError) as caught:
        refuse_bad_rows(problems, 100)
    assert caught.value.message == (
        "train.csv has 5 bad rows: line 2: label must not be blank; line 4: label must not be blank; "
        "line 7: label must not be blank; and 2 more; correct them"
    )


def test_without_a_valid_file_a_tenth_of_every_label_is_held_out_and_said(tmp_path: Path) -> None:
    rows = "".join(ROW % (number, "ab"[number % 4 == 0]) for number in range(200))
    write(tmp_path, train_jsonl=rows)
    splits = read_splits(
        tmp_path,
        {".jsonl": read_intent_jsonl},
        seed=3,
        groups=lambda rows: rows.texts,
        strata=lambda rows: rows.labels,
    )
    assert sorted([*splits.train.texts, *splits.valid.texts]) == sorted(f"red shoes {n}" for n in range(200))
    assert [splits.valid.labels.count(label) for label in "ab"] == [15, 5]
    assert splits.notes == ("no valid file: 20 of the 200 examples of train.jsonl are held out as valid (seed 3)",)
    assert splits.test is None


def test_with_a_valid_file_nothing_is_held_out(tmp_path: Path) -> None:
    write(tmp_path, train_jsonl=ROW % (1, "a"), vali_jsonl=ROW % (2, "a"), test_jsonl=ROW % (3, "b"))
    splits = read_splits(tmp_path, {".jsonl": read_intent_jsonl}, seed=3, groups=lambda rows: rows.texts)
    assert {name: rows.texts for name, rows in splits.named().items()} == {
        "train": ("red shoes 1",),
        "valid": ("red shoes 2",),
        "test": ("red shoes 3",),
    }
    assert splits.notes == ()


def test_a_single_example_cannot_be_held_out(tmp_path: Path) -> None:
    write(tmp_path, train_jsonl=ROW % (1, "a"))
    with pytest.raises(DataError, match=r"train\.jsonl is too small to hold out"):
        read_splits(tmp_path, {".jsonl": read_intent_jsonl}, seed=3, groups=lambda rows: rows.texts)


@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), min_size=1, max_size=120),
    seed=st.integers(0, 9),
)
def test_a_group_is_never_torn_and_a_label_never_lost(rows: list[tuple[int, str]], seed: int) -> None:
    groups = [f"text {group}" for group, _ in rows]
    label_of = {}
    for group, (_, label) in zip(groups, rows, strict=True):
        label_of.setdefault(group, label)
    strata = [label_of[group] for group in groups]
    kept, held = hold_out(groups, seed, strata)
    assert sorted([*kept, *held]) == list(range(len(rows)))
    assert not {groups[row] for row in kept} & {groups[row] for row in held}
    assert {strata[row] for row in kept} == set(strata)
    assert len({groups[row] for row in held}) <= len(set(groups)) // 10 + 1
    assert all(
        np.array_equal(one, other) for one, other in zip((kept, held), hold_out(groups, seed, strata), strict=True)
    )


def test_another_seed_holds_out_other_rows() -> None:
    rows = IntentRows(tuple(map(str, range(100))), ("a",) * 100)
    chosen = {tuple(hold_out(rows.texts, seed)[1]) for seed in range(3)}
    assert len(chosen) == 3
    assert all(len(held) == 10 for held in chosen)
