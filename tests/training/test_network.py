import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.batch import collate, split
from models.errors import ConfigError, DataError, InputError, RefusedError
from models.gazetteer import Gazetteer
from models.model import open_model
from models.networks.transformer import GazetteerEmbedding, load_encoder
from models.session import OnnxSession
from models.text import SubwordEncoder
from tests.tiny_encoder import write_encoder
from training import tagging
from training.batches import shuffled_batches, sorted_batches
from training.checkpoint import load, save
from training.config import IntentTransformerConfig, TaggingTransformerConfig
from training.data.gazetteer import Terms
from training.data.splits import IntentRows, Splits, TaggingRows
from training.fit import Checkpoint
from training.loop import _rate
from training.network import fit_intent
from training.parity import without_padding
from training.quantization.quantizer import quantize
from training.tagging import TaggingSplits

pytestmark = pytest.mark.usefixtures("one_thread")

COLOURS, BRANDS = ("red", "blue", "green"), ("nike", "adidas")
SHOPPING = [(colour, brand, thing) for colour in COLOURS for brand in BRANDS for thing in ("shoes", "shirt", "shirts")]
TAGS = ("B-colour", "B-brand", "O")
ORDERS = [("where", "is", "my", "order"), ("where", "is", "my", "shirt"), ("is", "my", "order", "where")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(write_encoder(tmp_path_factory.mktemp("encoder")))


def config(encoder, task="tagging", model=None, **training):
    schema = TaggingTransformerConfig if task == "tagging" else IntentTransformerConfig
    return schema(
        task=task,
        model={"kind": "transformer", "encoder": encoder, "max_tokens": 16, **(model or {})},
        training={"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "head_learning_rate": 1e-2, **training},
    )


def joint_rows(valid_label="search"):
    tokens = (*SHOPPING, *ORDERS * 4)
    tags = (*(TAGS for _ in SHOPPING), *(("O",) * 4 for _ in ORDERS * 4))
    labels = (*("search" for _ in SHOPPING), *("order" for _ in ORDERS * 4))
    train = TaggingRows(tokens, tags, labels, "train.jsonl", "0" * 64)
    valid = TaggingRows(
        (("red", "nike", "shoes"), ORDERS[0]), (TAGS, ("O",) * 4), (valid_label, "order"), "valid.jsonl"
    )
    return Splits(train, valid, None)


class Listener:
    """Records what a training says; raises `fault` after `n_steps` steps of `stage`."""

    def __init__(self, n_steps=None, fault=RuntimeError, stage="training"):
        self.n_steps, self.fault, self.stage = n_steps, fault, stage
        self.epochs, self.said = [], []

    def metrics(self, values, step):
        self.epochs.append((step, dict(values)))

    def progress(self, stage, done, total):  # noqa: ARG002
        if (stage, done) == (self.stage, self.n_steps):
            raise self.fault

    def say(self, sentence):
        self.said.append(sentence)


def weights(fitted):
    return fitted.draft.network.state_dict()


def assert_equal_weights(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(encoder, tmp_path_factory):
    listener = Listener()
    checkpoint = Checkpoint(tmp_path_factory.mktemp("whole"), "f")
    return tagging.fit(config(encoder), joint_rows(), listener, checkpoint), listener, checkpoint


def test_a_tagger_is_trained_on_its_rows_and_on_as_many_swapped_ones_as_asked(encoder, tmp_path):
    tokens = (("blue", "nike", "shirt"), ("green", "nike", "shirt"), ("red", "shoes"))
    train = TaggingRows(tokens, (TAGS, TAGS, ("B-colour", "O")), file="train.jsonl")
    splits = Splits(train, train, None)
    fitted = tagging.fit(config(encoder, epochs=1, n_swapped=7), splits, Listener(), Checkpoint(tmp_path / "c", "f"))
    assert fitted.parameters()["n_examples"] == 3 * (1 + 7)
    plain = tagging.fit(config(encoder, epochs=1), splits, Listener(), Checkpoint(tmp_path / "p", "f"))
    assert plain.parameters()["n_examples"] == 3


def test_a_joint_training_learns_tags_and_intents(encoder, tmp_path):
    fitted = tagging.fit(
        config(encoder, epochs=12, patience=12), joint_rows(), Listener(), Checkpoint(tmp_path / "c", "f")
    )
    model = open_model(tmp_path, fitted.write(tmp_path))
    text = "blue adidas shirt"
    encoded = model.encode(text)
    reading = model.decode(text, encoded, fitted.outputs([encoded])[0])
    assert [(entity.type, entity.text) for entity in reading.entities] == [("colour", "blue"), ("brand", "adidas")]
    assert reading.intent.label == "search"


def test_the_same_seed_gives_the_same_weights(whole, encoder, tmp_path):
    again = tagging.fit(config(encoder), joint_rows(), Listener(), Checkpoint(tmp_path, "f"))
    assert_equal_weights(weights(whole[0]), weights(again))


def test_every_epoch_is_recorded(whole):
    assert [step for step, _ in whole[1].epochs] == [1, 2, 3]
    assert {"train_loss", "valid_span_f1", "valid_intent_accuracy"} <= set(whole[1].epochs[0][1])


def test_a_finished_training_is_not_done_again(whole, encoder):
    listener = Listener()
    resumed = tagging.fit(config(encoder), joint_rows(), listener, replace(whole[2], resume=True))
    assert listener.said == ["training goes on from step 12 of 12"]
    assert not listener.epochs
    assert_equal_weights(weights(whole[0]), weights(resumed))


def with_test(splits):
    """The same rows, a type of spans that only valid has, and a test split."""
    sized = TaggingRows((("small", "shirt"),), (("B-size", "O"),), ("search",))
    return Splits(splits.train, splits.valid.joined(sized), splits.valid)


def test_a_refit_learns_train_and_valid_for_as_many_epochs_as_valid_chose(encoder, tmp_path):
    splits, listener = with_test(joint_rows()), Listener()
    chosen = tagging.fit(config(encoder), splits, Listener(), Checkpoint(tmp_path / "chosen", "f"))
    n_epochs = chosen.parameters()["best_epoch"]
    checkpoint = Checkpoint(tmp_path / "refit", "f")
    fitted = tagging.fit(config(encoder, refit=True), splits, listener, checkpoint)
    together = Splits(splits.train.joined(splits.valid), splits.valid, None)
    plain = Checkpoint(tmp_path / "plain", "f")
    tagging.fit(config(encoder, epochs=n_epochs, patience=9), together, Listener(), plain)
    assert_equal_weights(load(checkpoint.of_refit())[0]["network"], load(plain)[0]["network"])
    assert "B-size" in fitted.draft.contents.tags
    assert "B-size" not in chosen.draft.contents.tags
    expected = {**chosen.parameters(), "n_examples": 33, "refitted_rows": 33}
    assert {**fitted.parameters(), "n_parameters": expected["n_parameters"]} == expected
    assert listener.said == [f"{n_epochs} epochs once more, on 33 rows of train and valid"]
    assert [step for step, values in listener.epochs if "refit_train_loss" in values] == [*range(1, n_epochs + 1)]


def test_a_killed_refit_goes_on_to_the_same_weights(encoder, tmp_path):
    splits, often = with_test(joint_rows()), config(encoder, refit=True, checkpoint_every_s=1e-9)
    unbroken = tagging.fit(often, splits, Listener(), Checkpoint(tmp_path / "unbroken", "f"))
    with pytest.raises(RuntimeError):
        tagging.fit(often, splits, Listener(3, stage="refit"), Checkpoint(tmp_path / "killed", "f"))
    listener = Listener()
    resumed = tagging.fit(often, splits, listener, Checkpoint(tmp_path / "killed", "f", resume=True))
    assert [sentence.partition(" of ")[0] for sentence in listener.said if "goes on" in sentence] == [
        "training goes on from step 12",
        "training goes on from step 2",
    ]
    assert_equal_weights(weights(unbroken), weights(resumed))


def test_a_refit_without_a_test_file_is_left_out_and_said(encoder, tmp_path):
    rows = (
        {"tokens": ["red", "shoes"], "tags": ["B-colour", "O"], "label": "search"},
        {"tokens": ["my", "order"], "tags": ["O", "O"], "label": "order"},
    )
    for name in ("train", "valid"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = tagging.read(tmp_path, config(encoder, refit=True))
    assert splits.notes[-1] == "no test file: training.refit is left out, so that valid can judge"
    fitted = tagging.fit(config(encoder, refit=True), splits, Listener(), Checkpoint(tmp_path / "c", "f"))
    assert "refitted_rows" not in fitted.parameters()


@pytest.mark.parametrize("n_steps", [2, 4, 7])
def test_a_killed_training_goes_on_to_the_same_weights(whole, encoder, tmp_path, n_steps):
    often = config(encoder, checkpoint_every_s=1e-9)
    with pytest.raises(RuntimeError):
        tagging.fit(often, joint_rows(), Listener(n_steps), Checkpoint(tmp_path, "f"))
    torch.manual_seed(99)
    listener = Listener()
    resumed = tagging.fit(often, joint_rows(), listener, Checkpoint(tmp_path, "f", resume=True))
    assert listener.said == [f"training goes on from step {n_steps - 1} of 12"]
    assert_equal_weights(weights(whole[0]), weights(resumed))


def test_ctrl_c_leaves_a_checkpoint_that_goes_on_to_the_same_weights(whole, encoder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tagging.fit(config(encoder), joint_rows(), Listener(6, KeyboardInterrupt), Checkpoint(tmp_path, "f"))
    resumed = tagging.fit(config(encoder), joint_rows(), Listener(), Checkpoint(tmp_path, "f", resume=True))
    assert_equal_weights(weights(whole[0]), weights(resumed))


def test_ctrl_c_within_a_step_waits_for_its_end(encoder, tmp_path, monkeypatch):
    step = torch.optim.AdamW.step

    def interrupted_step(self, *arguments):
        signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted_step)
    checkpoint = Checkpoint(tmp_path, "f", resume=True)
    with pytest.raises(KeyboardInterrupt):
        tagging.fit(config(encoder), joint_rows(), Listener(), checkpoint)
    state, _ = load(checkpoint)
    assert state["position"][:3] == [0, 1, 1]


def test_a_checkpoint_of_another_training_is_not_continued(whole, encoder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tagging.fit(config(encoder), joint_rows(), Listener(2, KeyboardInterrupt), Checkpoint(tmp_path, "other"))
    listener = Listener()
    fitted = tagging.fit(config(encoder), joint_rows(), listener, Checkpoint(tmp_path, "f", resume=True))
    assert "of another configuration or data: training starts from the beginning" in listener.said[0]
    assert_equal_weights(weights(whole[0]), weights(fitted))


def test_a_missing_or_damaged_checkpoint_is_said(tmp_path):
    checkpoint = Checkpoint(tmp_path, "f", resume=True)
    assert load(checkpoint) == (None, f"no checkpoint in {tmp_path}: training starts from the beginning")
    save(checkpoint, {"step": 1})
    file = tmp_path / "state.pt"
    file.write_bytes(file.read_bytes()[:100])
    assert "cannot be read" in load(checkpoint)[1]


def test_training_stops_where_valid_gets_no_better(encoder, tmp_path):
    slow = config(encoder, epochs=9, patience=2, learning_rate=1e-12, head_learning_rate=1e-12)
    listener = Listener()
    fitted = tagging.fit(slow, joint_rows(), listener, Checkpoint(tmp_path, "f"))
    assert fitted.parameters()["epochs_run"] == len(listener.epochs) == 3


def test_a_diverging_training_is_refused(encoder, tmp_path):
    wild = config(encoder, epochs=30, learning_rate=1e30, head_learning_rate=1e30)
    with pytest.raises(RefusedError, match=r"lower training\.learning_rate"):
        tagging.fit(wild, joint_rows(), Listener(), Checkpoint(tmp_path, "f"))


@pytest.mark.parametrize("multiplies", [False, True])
def test_products_are_of_16_bits_where_the_processor_multiplies_them(whole, encoder, tmp_path, monkeypatch, multiplies):
    def trained(precision):
        settings = config(encoder, precision=precision)
        return weights(tagging.fit(settings, joint_rows(), Listener(), Checkpoint(tmp_path, "f")))

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies)
    in_float32, chosen = weights(whole[0]), trained("auto")
    assert_equal_weights(chosen, trained("bfloat16") if multiplies else in_float32)
    assert all(weight.dtype == in_float32[name].dtype for name, weight in chosen.items())
    if multiplies:
        assert not torch.equal(chosen["tag_head.weight"], in_float32["tag_head.weight"])


def test_an_unknown_label_in_valid_counts_as_an_error(encoder, tmp_path):
    listener = Listener()
    tagging.fit(config(encoder), joint_rows(valid_label="unheard"), listener, Checkpoint(tmp_path, "f"))
    assert all(values["valid_intent_accuracy"] <= 0.5 for _, values in listener.epochs)


def test_an_intent_network_answers_alike_in_pytorch_and_in_its_bundle(encoder, tmp_path):
    rows = joint_rows()
    texts = Splits(
        IntentRows(tuple(rows.train.requests()), rows.train.labels, "train.csv"),
        IntentRows(tuple(rows.valid.requests()), rows.valid.labels, "valid.csv"),
        None,
    )
    fitted = fit_intent(config(encoder, "intent", epochs=6), texts, Listener(), Checkpoint(tmp_path / "c", "f"))
    contents = fitted.write(tmp_path)
    model, session = open_model(tmp_path, contents), OnnxSession(tmp_path / "model.onnx")
    text = "where is my order"
    encoded = model.encode(text)
    found = session.run({name: array[None] for name, array in encoded.arrays.items()})
    np.testing.assert_allclose(found["intent_logits"][0], fitted.outputs([encoded])[0]["intent_logits"], atol=1e-5)
    assert model.decode(text, encoded, {"intent_logits": found["intent_logits"][0]}).intent.label == "order"
    assert contents.encoder.source == "directory"


def test_rows_that_are_too_long_are_counted_before_training(encoder, tmp_path):
    rows = joint_rows()
    long = TaggingRows(
        (("red",) * 20, ("red",) * 30, ("red",)), (("O",) * 20, ("O",) * 30, ("O",)), ("a",) * 3, "test.jsonl"
    )
    with pytest.raises(DataError, match=r"test.jsonl has 2 longer rows, the longest of 32; raise model.max_tokens"):
        tagging.fit(config(encoder), Splits(rows.train, rows.valid, long), Listener(), Checkpoint(tmp_path, "f"))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "mpnet"])
def test_more_tokens_than_the_encoder_has_positions_for_are_refused(tmp_path, kind):
    encoder = write_encoder(tmp_path / "encoder", kind)
    network = load_encoder(encoder)
    network(input_ids=torch.full((1, 64), 5))
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        network(input_ids=torch.full((1, 65), 5))
    longer = config(str(encoder), model={"max_tokens": 65})
    with pytest.raises(ConfigError, match=r"max_tokens must be at most the 64 tokens .* got 65"):
        tagging.fit(longer, joint_rows(), Listener(), Checkpoint(tmp_path, "f"))


def test_an_epoch_takes_every_example_once_in_batches_of_like_length(encoder):
    reader = SubwordEncoder(Path(encoder) / "tokenizer.json", 16)
    requests = [reader.encode("red " * n) for n in (1, 9, 1, 9, 1, 9, 1, 9)]
    batches = shuffled_batches(requests, 4, (13, 0))
    assert sorted(np.concatenate(batches)) == list(range(8))
    assert all(len({requests[index].length for index in batch}) == 1 for batch in batches)
    again = shuffled_batches(requests, 4, (13, 0))
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
    assert [len(batch) for batch in sorted_batches(requests, 22)] == [4, 2, 2]


def test_the_learning_rate_rises_to_its_peak_and_falls_towards_zero():
    rates = [_rate(step, 10, 0.2) for step in range(10)]
    assert rates == pytest.approx([1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert _rate(0, 10, 0.0) == 1


def served_alike(fitted, directory, text):
    """What the bundle reads in `text`, by ONNX Runtime; its outputs must be those of PyTorch."""
    contents = fitted.write(directory)
    model, session = open_model(directory, contents), OnnxSession(directory / "model.onnx")
    encoded = model.encode(text)
    found = split(session.run(collate([encoded], contents.signature)), [encoded], contents.signature)[0]
    ours = without_padding(found, encoded)
    for name, expected in without_padding(fitted.outputs([encoded])[0], encoded).items():
        np.testing.assert_allclose(ours[name], expected, atol=1e-4)
    return model.decode(text, encoded, found)


@pytest.mark.parametrize("crf", [True, False])
def test_transitions_are_in_the_bundle_where_they_were_learned(encoder, tmp_path, crf):
    settings = config(encoder, model={"crf": crf}, epochs=6)
    fitted = tagging.fit(settings, joint_rows(), Listener(), Checkpoint(tmp_path / "c", "f"))
    reading = served_alike(fitted, tmp_path, "green nike shirts")
    assert [(entity.type, entity.text) for entity in reading.entities] == [("colour", "green"), ("brand", "nike")]
    assert fitted.draft.contents.has_transitions is crf
    assert (tmp_path / "transitions.npy").exists() is crf


def test_what_an_intent_takes_from_its_tags_is_in_the_bundle_and_changes_no_weight(encoder, tmp_path):
    without, fitted = (
        tagging.fit(
            config(encoder, model={"intent_prior": prior, "max_windows": 4}, epochs=1),
            joint_rows(),
            Listener(),
            Checkpoint(tmp_path / str(prior), "f"),
        )
        for prior in (False, True)
    )
    assert_equal_weights(weights(without), weights(fitted))
    for text in ("red nike shoes", "red nike shoes " * 8):
        served_alike(fitted, tmp_path, text)
    encoded = fitted.draft.reader.encode("red nike shoes")
    one, other = (model.outputs([encoded])[0] for model in (without, fitted))
    chances_C = torch.from_numpy(one["intent_logits"]).softmax(-1).numpy()
    chance_of_order = float(chances_C[fitted.draft.contents.labels.index("order")])
    # 12 of 30 rows are orders, with none of the colours and brands of the 18 searches: by chance 7.2 had one.
    taken = [0.0 if tag == "O" else chance_of_order * math.log(1 / 8.2) for tag in fitted.draft.contents.tags]
    np.testing.assert_allclose(other["tag_logits"] - one["tag_logits"], np.tile(taken, (encoded.length, 1)), atol=1e-5)


def test_long_texts_are_trained_on_and_answered_in_windows(encoder, tmp_path):
    rows = joint_rows()
    long = (("red", "nike", "shoes") * 8, TAGS * 8, "search")
    train = TaggingRows(
        (*rows.train.tokens, *(long[0],) * 4),
        (*rows.train.tags, *(long[1],) * 4),
        (*rows.train.labels, *(long[2],) * 4),
        "train.jsonl",
    )
    splits = Splits(train, TaggingRows((long[0],), (long[1],), (long[2],), "valid.jsonl"), None)
    settings = config(encoder, model={"max_windows": 4}, epochs=8, patience=8)
    listener = Listener()
    fitted = tagging.fit(settings, splits, listener, Checkpoint(tmp_path / "c", "f"))
    assert listener.epochs[-1][1]["valid_exact_match"] == 1.0
    reading = served_alike(fitted, tmp_path, " ".join(long[0]))
    assert [entity.type for entity in reading.entities] == ["colour", "brand"] * 8
    assert reading.intent.label == "search"
    with pytest.raises(InputError, match="in each of 4 windows"):
        open_model(tmp_path, fitted.draft.contents).encode("red " * 100)


def test_the_intent_of_a_long_text_is_the_mean_over_its_windows(encoder, tmp_path):
    long = " ".join(("red", "nike", "shoes") * 8)
    texts = Splits(
        IntentRows((long, "where is my order") * 6, ("search", "order") * 6, "train.csv"),
        IntentRows((long, "is my order where"), ("search", "order"), "valid.csv"),
        None,
    )
    settings = config(encoder, "intent", model={"max_windows": 4}, epochs=6)
    fitted = fit_intent(settings, texts, Listener(), Checkpoint(tmp_path / "c", "f"))
    assert served_alike(fitted, tmp_path, long).intent.label == "search"
    encoded = open_model(tmp_path, fitted.draft.contents).encode(long)
    rows = OnnxSession(tmp_path / "model.onnx").run(dict(encoded.arrays))["intent_logits"]
    assert len(rows) == encoded.n_windows == 3
    np.testing.assert_allclose(rows.mean(axis=0), fitted.outputs([encoded])[0]["intent_logits"], atol=1e-4)


def test_a_brand_that_training_never_saw_is_read_from_the_gazetteer(encoder, tmp_path):
    """`size` is a brand of the gazetteer here: no training row holds it."""
    rows = joint_rows()
    terms = Terms(Gazetteer({"brand": ["nike", "adidas", "size"]}), "terms.csv", "0" * 64)
    splits = TaggingSplits(rows.train, rows.valid, None, terms=terms)
    settings = config(encoder, epochs=12, patience=12)
    fitted = tagging.fit(settings, splits, Listener(), Checkpoint(tmp_path / "c", "f"))
    assert fitted.draft.contents.gazetteer == ("brand",)
    reading = served_alike(fitted, tmp_path, "blue size shirt")
    assert [(entity.type, entity.text) for entity in reading.entities] == [("colour", "blue"), ("brand", "size")]
    quantize(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    model = open_model(tmp_path, fitted.draft.contents)
    encoded = model.encode("blue size shirt")
    int8 = OnnxSession(tmp_path / "int8.onnx").run(collate([encoded], fitted.draft.contents.signature))
    assert model.tags([encoded], [{name: array[0] for name, array in int8.items()}]) == [["B-colour", "B-brand", "O"]]


def test_terms_go_unseen_at_times_while_training_and_never_after():
    torch.manual_seed(0)
    embedding = GazetteerEmbedding(n_types=2, n_hidden=1, dropout=0.5)
    with torch.no_grad():
        embedding.weight.copy_(torch.tensor([[1.0], [10.0], [100.0], [1000.0]]))
    bits = torch.tensor([[0b0001, 0b0110, 0]] * 200)
    seen = embedding.train()(bits)[:, :, 0]
    assert {tuple(row) for row in seen.tolist()} == {(1, 110, 0), (1, 10, 0), (0, 100, 0), (0, 0, 0)}
    assert embedding.eval()(bits[:1])[0, :, 0].tolist() == [1, 110, 0]
