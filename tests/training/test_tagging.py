import json

import pytest

from models.config import read as read_config
from models.errors import ConfigError, DataError
from training.config import TaggingTransformerConfig, parse
from training.tagging import read, read_file

CONFIG = TaggingTransformerConfig(task="tagging", model={"kind": "transformer"})
ROW = {"tokens": ["red", "shoes"], "tags": ["B-colour", "O"]}


def write(directory, **splits):
    for name, rows in splits.items():
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_all_splits_are_read_and_unknown_values_counted(tmp_path):
    strange = {"tokens": ["cotton"], "tags": ["B-material"], "label": "unheard"}
    write(
        tmp_path,
        train=[{**ROW, "label": "search"}, {**ROW, "label": "search"}, {**ROW, "label": "order"}],
        valid=[{**ROW, "label": "search"}],
        test=[strange] * 2,
    )
    splits = read(tmp_path, CONFIG)
    assert [len(rows) for rows in splits.named().values()] == [3, 1, 2]
    assert splits.train.requests()[0] == "red shoes"
    assert splits.notes == (
        "2 rows of test.jsonl have a tag that train does not have (B-material): they count as errors",
        "2 rows of test.jsonl have a label that train does not have (unheard): they count as errors",
    )


def test_a_part_of_train_is_held_out_where_valid_is_absent(tmp_path):
    rows = [{"tokens": ["red", f"shoe{number}"], "tags": ROW["tags"]} for number in range(30)]
    splits = read(write(tmp_path, train=rows), CONFIG)
    assert (len(splits.train), len(splits.valid)) == (27, 3)
    assert not set(splits.train.requests()) & set(splits.valid.requests())


def test_labels_in_some_files_only_are_refused(tmp_path):
    write(tmp_path, train=[{**ROW, "label": "search"}, {**ROW, "label": "order"}], valid=[ROW])
    with pytest.raises(DataError, match=r"train\.jsonl has it and valid\.jsonl does not"):
        read(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        ([{**ROW, "label": "search"}] * 2, "at least two labels"),
        ([{"tokens": ["red"], "tags": ["O"]}], "tag at least one word"),
    ],
)
def test_rows_with_nothing_to_learn_are_refused(tmp_path, rows, rule):
    with pytest.raises(DataError, match=rule):
        read(write(tmp_path, train=rows, valid=rows), CONFIG)


def test_conll_files_are_read_too(tmp_path):
    file = tmp_path / "test.conll"
    file.write_text("red\tB-colour\nshoes\tO\n\n")
    assert read_file(file, CONFIG).tags == (("B-colour", "O"),)
    with pytest.raises(DataError, match=r"must end in \.jsonl or \.conll"):
        read_file(tmp_path / "test.txt", CONFIG)


@pytest.mark.parametrize("name", ["tagging_transformer", "joint_transformer"])
def test_shipped_configurations_are_valid(name):
    assert isinstance(parse(read_config(name), "tagging"), TaggingTransformerConfig)


def test_terms_are_found_below_the_data_or_by_their_path_and_count_as_what_was_read(tmp_path):
    write(tmp_path, train=[ROW], valid=[ROW])
    (tmp_path / "terms.csv").write_text("type,term\nbrand,nike\nbrand,new balance\n")
    for name in ("terms.csv", str(tmp_path / "terms.csv")):
        config = TaggingTransformerConfig(task="tagging", model={"kind": "transformer", "gazetteer": name})
        splits = read(tmp_path, config)
        assert splits.terms.gazetteer.terms == {"brand": ("new balance", "nike")}
        assert (list(splits.sources()), len(splits.sources()["gazetteer"])) == (["train", "valid", "gazetteer"], 2)
    config = TaggingTransformerConfig(task="tagging", model={"kind": "transformer", "gazetteer": "absent.csv"})
    with pytest.raises(ConfigError, match=r"model\.gazetteer must be a file below .*, got absent\.csv"):
        read(tmp_path, config)
