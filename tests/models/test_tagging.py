import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from models.batch import Encoded
from models.manifest import Calibration, Contents, Signature, SubwordText
from models.tagging import Span, TaggingModel, spans
from models.text import SubwordEncoder, split_words
from tests.tiny_encoder import SPECIAL, WORDS, write_encoder

TAGS = ("O", "B-brand", "I-brand", "B-size", "I-size")


@given(st.lists(st.sampled_from(TAGS), max_size=8))
def test_spans_are_those_of_seqeval(tags):
    theirs = [Span(kind, first, last + 1) for kind, first, last in get_entities(tags)]
    assert spans(tags) == theirs


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return SubwordEncoder(write_encoder(tmp_path_factory.mktemp("encoder")) / "tokenizer.json", 32)


def model(encoder, labels=None):
    contents = Contents(
        family="tagging",
        signature=Signature(inputs=(), outputs=(), layout="rows"),
        labels=labels,
        tags=TAGS,
        text=SubwordText(max_tokens=32),
        calibration=Calibration(),
    )
    return TaggingModel(contents, encoder)


def read(encoder, text, tags, labels=None, odds=99.0):
    """Decode logits that give each word's tag `odds` against each of the other four tags together."""
    tagger = model(encoder, labels)
    encoded = tagger.encode(text)
    logits = np.zeros((encoded.length, len(TAGS)), dtype=np.float32)
    for first, tag in zip(encoded.first_pieces, tags, strict=True):
        if first >= 0:
            logits[first, TAGS.index(tag)] = np.log(odds * 4)
    outputs = {"tag_logits": logits, "intent_logits": np.array([0.0, np.log(3)], dtype=np.float32)}
    return tagger.decode(text, encoded, outputs), tagger.tags([encoded], [outputs])[0]


@pytest.mark.parametrize("is_joint", [False, True])
def test_texts_that_are_read_together_are_read_as_each_alone(encoder, is_joint):
    tagger, dice = model(encoder, ("buy", "return") if is_joint else None), np.random.default_rng(0)
    texts = ["nike", "red nike shoes size 10", "", "where is my order \x01", "adidas shirt"] * 60
    encoded = [tagger.encode(text) for text in texts]
    outputs = [
        {
            "tag_logits": dice.normal(size=(one.length, len(TAGS))).astype(np.float32) * 4,
            "intent_logits": dice.normal(size=2).astype(np.float32),
        }
        for one in encoded
    ]
    alone = [tagger.decode(*one) for one in zip(texts, encoded, outputs, strict=True)]
    assert tagger.decode_batch(texts, encoded, outputs) == alone
    assert sum(len(reading.entities) for reading in alone) > 100
    assert all((reading.intent is not None) is is_joint for reading in alone)


def test_entities_are_pieces_of_the_users_own_text(encoder):
    text = "Red  NIKE shoes,\tsize 10"
    reading, tags = read(encoder, text, ["O", "B-brand", "I-brand", "O", "B-size"])
    assert tags == ["O", "B-brand", "I-brand", "O", "B-size"]
    assert [(entity.type, entity.text) for entity in reading.entities] == [("brand", "NIKE shoes"), ("size", "10")]
    assert all(text[entity.start : entity.end] == entity.text for entity in reading.entities)


def test_confidence_is_the_product_over_the_words(encoder):
    reading, _ = read(encoder, "nike shoes", ["B-brand", "I-brand"])
    assert reading.entities[0].confidence == pytest.approx(0.99**2)


@pytest.mark.parametrize(
    ("word", "entity"),
    [('"nike"!', "nike"), ("nike.", "nike"), ("...", "..."), ("o'neill", "o'neill"), ('10"', '10"'), ('"10"', "10")],
)
def test_punctuation_around_an_entity_is_left_out_unless_it_is_all_there_is(encoder, word, entity):
    reading, _ = read(encoder, f"red {word}", ["O", "B-brand"])
    assert reading.entities[0].text == entity


def test_a_word_without_tokens_is_outside_and_ends_a_span(encoder):
    text = "nike \x01 shoes"
    encoded = model(encoder).encode(text)
    assert encoded.first_pieces[1] == -1
    _, tags = read(encoder, text, ["B-brand", "I-brand", "I-brand"])
    assert tags[:2] == ["B-brand", "O"]
    assert tags[2] != "I-brand"


def test_a_joint_model_reads_the_intent_too(encoder):
    reading, _ = read(encoder, "red shoes", ["O", "O"], labels=("order", "search"))
    assert (reading.intent.label, reading.intent.confidence) == ("search", pytest.approx(0.75))
    assert read(encoder, "red shoes", ["O", "O"])[0].intent is None


def test_an_empty_text_has_no_entities(encoder):
    reading, tags = read(encoder, "", [])
    assert (reading.entities, tags) == ((), [])


def test_a_padded_batch_row_reads_as_the_text_alone(encoder):
    tagger = model(encoder)
    encoded = tagger.encode("red nike")
    logits = np.random.default_rng(0).normal(size=(encoded.length, len(TAGS)))
    padded = np.concatenate([logits, np.full((5, len(TAGS)), 100.0)])
    assert tagger.decode("red nike", encoded, {"tag_logits": logits}) == tagger.decode(
        "red nike", encoded, {"tag_logits": padded}
    )


def test_a_tagging_model_without_tags_is_a_mistake_of_the_caller(encoder):
    contents = Contents(family="tagging", signature=Signature(inputs=(), outputs=(), layout="rows"))
    with pytest.raises(ValueError, match="must have tags"):
        TaggingModel(contents, encoder)


def test_the_tiny_tokenizer_splits_words_into_pieces(encoder):
    encoded: Encoded = encoder.encode_words("red shoes 10", split_words("red shoes 10"))
    assert encoded.first_pieces == (1, 2, 4)
    assert len(SPECIAL) + WORDS.index("##s") in encoded.arrays["input_ids"]
