"""Reading labelled texts for training, and choosing the fit that the configuration names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from models.answers import Reading
from models.config import read as read_config
from models.errors import ConfigError, DataError
from models.model import open_model
from training import intent
from training.config import IntentLinearConfig, IntentTransformerConfig, parse
from training.data.labels import implied_labels
from training.fit import Checkpoint
from training.terminal import Terminal

SHIPPED = {
    "intent_linear": IntentLinearConfig,
    "intent_transformer": IntentTransformerConfig,
    "intent_few_shot": IntentTransformerConfig,
}


def rows(*labels: str, text: str = "red shoes") -> str:
    return "".join(f'{{"text": "{text} {number}", "label": "{label}"}}\n' for number, label in enumerate(labels))


def config(*overrides: str) -> IntentLinearConfig:
    found = parse(read_config("intent_linear", overrides), "intent")
    assert isinstance(found, IntentLinearConfig)
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_configurations_hold(name: str) -> None:
    assert isinstance(parse(read_config(name), "intent"), SHIPPED[name])


def test_labels_that_train_does_not_have_are_counted_and_said(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(rows("a", "b"))
    (tmp_path / "valid.csv").write_text("text,label\nblue,a\n")
    (tmp_path / "test.jsonl").write_text(rows("a", "c", "c", "d"))
    splits = intent.read(tmp_path, config())
    assert splits.notes == ("3 rows of test.jsonl have a label that train does not have (c, d): they count as errors",)
    assert len(splits.test or ()) == 4


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(rows("a", "a", "a"))
    (tmp_path / "valid.jsonl").write_text(rows("a", "b"))
    with pytest.raises(DataError, match=r"train\.jsonl must have rows of at least two labels, all of them are 'a'"):
        intent.read(tmp_path, config())


def test_labels_are_lists_in_every_file_or_in_none(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "x", "labels": ["a"]}\n{"text": "y", "labels": ["b"]}\n')
    (tmp_path / "valid.jsonl").write_text(rows("a", "b"))
    with pytest.raises(DataError, match=r"train\.jsonl has them and valid\.jsonl does not"):
        intent.read(tmp_path, config())


def test_an_unknown_label_in_a_list_is_counted_and_oos_is_known_to_a_decision_on_scope(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "x", "labels": ["a", "b"]}\n')
    (tmp_path / "valid.jsonl").write_text('{"text": "x", "labels": ["a", "c"]}\n{"text": "x", "labels": []}\n')
    assert [note.partition(" have")[0] for note in intent.read(tmp_path, config()).notes] == ["1 rows of valid.jsonl"]
    (tmp_path / "train.jsonl").write_text(rows("a", "b"))
    (tmp_path / "valid.jsonl").write_text(rows("a", "oos"))
    assert len(intent.read(tmp_path, config()).notes) == 1
    assert intent.read(tmp_path, config("scope={aim: {false_alarms_per_1000: 20}}")).notes == ()


def test_a_label_implies_what_stands_in_all_of_its_rows() -> None:
    sets = [("apparel", "shoes")] * 6 + [("apparel", "shoes", "sneakers")] * 10 + [("apparel",)] * 3
    sets += [("apparel", "rare")] * 9 + [("left", "right")] * 12
    assert implied_labels(sets) == {"shoes": ("apparel",), "sneakers": ("apparel", "shoes")}


def test_a_linear_model_has_no_vector_to_measure_distances_of() -> None:
    with pytest.raises(ConfigError, match=r"scope: distance needs the vector of a text.*take energy"):
        config("scope={scores: [distance]}")


def test_a_text_that_occurs_twice_is_held_out_whole(tmp_path: Path) -> None:
    texts = "".join(
        f'{{"text": "{text}", "label": "{"ab"[i % 2]}"}}\n' for i in range(40) for text in (f"t{i}", f"T{i} ")
    )
    (tmp_path / "train.jsonl").write_text(texts)
    splits = intent.read(tmp_path, config())
    assert len(splits.valid) == 8
    assert not {text.strip().lower() for text in splits.train.texts} & {
        text.strip().lower() for text in splits.valid.texts
    }


def test_one_file_is_read_by_its_ending(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("label,text\na,red\n")
    assert intent.read_file(tmp_path / "more.csv", config()).texts == ("red",)
    with pytest.raises(DataError, match=r"must end in \.jsonl or \.csv"):
        intent.read_file(tmp_path / "more.txt", config())


def test_a_linear_fit_names_its_labels_in_order(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(rows("b", "a") * 20 + rows("b", "a", text="blue jacket") * 20)
    splits = intent.read(tmp_path, config())
    fitted = intent.fit(config(), splits, Terminal(), Checkpoint(tmp_path / "checkpoint", "none"))
    assert fitted.write(tmp_path).labels == ("a", "b")
    assert (tmp_path / "model.onnx").stat().st_size < 1_000_000


def test_a_linear_model_refuses_what_is_unlike_anything_it_was_trained_on(tmp_path: Path) -> None:
    strange = ("what is the weather", "tell me a joke", "how tall is the tower", "sing a song", "who won the match")
    (tmp_path / "train.jsonl").write_text(rows("b", "b") * 20 + rows("a", "a", text="blue jacket") * 20)
    (tmp_path / "valid.jsonl").write_text(
        rows("b") * 10 + rows("a", text="blue jacket") * 10 + "".join(rows("oos", text=text) for text in strange)
    )
    of = config("scope={aim: {oos_recall: 0.8}}")
    fitted = intent.fit(of, intent.read(tmp_path, of), Terminal(), Checkpoint(tmp_path / "checkpoint", "none"))
    model = open_model(tmp_path, fitted.write(tmp_path))

    def label(text: str) -> str:
        encoded = model.encode(text)
        reading = model.decode(text, encoded, fitted.outputs([encoded])[0])
        assert isinstance(reading, Reading)
        assert reading.intent is not None
        return reading.intent.label

    assert [label(text) for text in ("red shoes", "blue jacket", "what a day")] == ["b", "a", "oos"]
    assert fitted.parameters()["scope_weight_energy"] > 0  # type: ignore[operator]


def test_reading_and_linear_models_need_no_pytorch() -> None:
    code = "import sys, training.intent, training.linear; print('torch' in sys.modules, 'transformers' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]
