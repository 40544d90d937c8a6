"""How long texts are, and which are too long for what will be trained."""

from pathlib import Path

from tokenizers import Tokenizer

from tests.tiny_encoder import write_encoder
from training.checks.lengths import lengths
from training.config import parse

LINEAR = parse({"task": "intent", "model": {"kind": "linear"}}, "intent")


def test_lengths_are_those_of_words() -> None:
    (finding,) = lengths({"train": ["a b", "a", "a b c", "a b c d e f g"], "test": ["a b"]}, LINEAR)
    assert finding.sentence.startswith("half of the train texts have at most 2 words")
    assert "the longest has 7 words and 13 characters" in finding.sentence
    assert finding.chart is not None
    assert finding.chart.names == ("1", "2", "3", "4", "5", "6+")
    assert finding.chart.series == {
        "train": (25.0, 25.0, 25.0, 0.0, 0.0, 25.0),
        "test": (0.0, 100.0, 0.0, 0.0, 0.0, 0.0),
    }


def test_a_text_beyond_the_characters_of_a_linear_model_is_named() -> None:
    _, finding = lengths({"train": ["a", "b" * 2001, "c" * 2000]}, LINEAR)
    assert (finding.rule, finding.severity, finding.value) == ("too_long_train", "warning", 1)
    assert "more than the 2,000 characters that the model takes" in finding.sentence
    assert finding.examples[0]["row"] == 2
    assert len(str(finding.examples[0]["text"])) < 250


def test_tokens_are_counted_by_the_models_own_tokenizer(tmp_path: Path) -> None:
    encoder = str(write_encoder(tmp_path))
    config = parse({"task": "intent", "model": {"kind": "transformer", "encoder": encoder, "max_tokens": 8}}, "intent")
    # [CLS], six words, [SEP] are eight tokens; "shoes" are two.
    texts = ["red blue green shirt where is", "red blue green shoes where is", "red"]
    _, finding = lengths({"train": texts}, config)
    assert "more than the 8 tokens that the model takes (model.max_tokens 8)" in finding.sentence
    assert [example["row"] for example in finding.examples] == [2]
    assert finding.examples[0]["tokens"] == 9


def test_padding_that_a_tokenizers_file_asks_for_is_not_counted(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path)
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(encoder / "tokenizer.json"))
    model = {"kind": "transformer", "encoder": str(encoder), "max_tokens": 8}
    config = parse({"task": "intent", "model": model}, "intent")
    found = lengths({"train": ["red blue green", "red"]}, config)
    assert [finding.rule for finding in found] == ["lengths"]


def test_texts_of_a_megabyte_cost_no_more_than_others(tmp_path: Path) -> None:
    encoder = str(write_encoder(tmp_path))
    config = parse({"task": "intent", "model": {"kind": "transformer", "encoder": encoder, "max_tokens": 8}}, "intent")
    _, finding = lengths({"train": ["red " * 250_000, "red"]}, config)
    assert finding.value == 1
