import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.batch import Encoded
from models.chain import TRANSITIONS
from models.errors import ConfigError, DataError
from models.model import open_model
from models.networks.crf import Crf
from models.networks.transformer import load_encoder
from models.session import OnnxSession
from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.tiny_encoder import N_TOKENS, OTHER_WORDS, write_encoder
from tests.training.test_network import ORDERS, SHOPPING, TAGS, Listener
from training import distil, tagging
from training.config import parse
from training.data.unlabelled import read_unlabelled
from training.distil import soft_cross_entropy, soft_tag_loss
from training.fit import Checkpoint
from training.line import Order, run
from training.teacher import Teacher

EVALUATE = {"n_resamples": 100}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    rows = [{"tokens": tokens, "tags": TAGS, "label": "search"} for tokens in SHOPPING]
    rows += [{"tokens": tokens, "tags": ["O"] * 4, "label": "order"} for tokens in ORDERS * 4]
    for split, its in (("train", rows), ("valid", rows[::3])):
        (directory / f"{split}.jsonl").write_text("\n".join(map(json.dumps, its)))
    (directory / "log.txt.gz").write_bytes(gzip.compress(b"red shirt\n\nblue  nike shirt\nred shirt\n"))
    return directory


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    return Tracking(Workspace(tmp_path_factory.mktemp("workspace")))


@pytest.fixture(scope="module")
def teacher(data, tracking, tmp_path_factory):
    encoder = str(write_encoder(tmp_path_factory.mktemp("encoder")))
    return run(Order(parse(teaching(encoder), "tagging"), data, "shop"), tracking, Listener())


def teaching(encoder, **training):
    training = {"epochs": 12, "batch_size": 8, "learning_rate": 3e-3, "head_learning_rate": 1e-2} | training
    return {
        "task": "tagging",
        "model": {"kind": "transformer", "encoder": encoder, "max_tokens": 16},
        "training": training,
        "evaluate": EVALUATE,
        "quantize": {"max_loss": 1.0},
    }


def student(**changes):
    raw = {
        "task": "tagging",
        "teacher": "shop@candidate",
        "model": {"kind": "student", "n_hidden": 12, "n_intermediate": 16},
        "training": {"epochs": 12, "batch_size": 8, "patience": 12, "learning_rate": 1e-2, "head_learning_rate": 1e-2},
        "evaluate": EVALUATE,
        "quantize": {"max_loss": 1.0},
    }
    return parse(raw | changes, str(changes.get("task", "tagging")))


def test_a_student_learns_its_teachers_answers_and_may_take_its_name(teacher, data, tracking):
    made = run(Order(student(unlabelled="log.txt.gz"), data, "shop"), tracking, Listener())
    manifest = made.bundle.manifest
    assert (made.name, made.version) == ("shop", "2")
    assert manifest.teacher.requested == "shop@candidate"
    assert manifest.teacher.digest == teacher.bundle.digest
    assert manifest.data["unlabelled"].rows == 2
    assert manifest.signature == teacher.bundle.manifest.signature
    assert (manifest.labels, manifest.tags) == (teacher.bundle.manifest.labels, teacher.bundle.manifest.tags)
    assert made.metrics["valid"]["span_f1"] > 0.9
    assert made.metrics["valid"]["intent_accuracy"] > 0.9
    model, session = open_model(made.bundle.path, manifest), OnnxSession(made.bundle.model_file())
    encoded = model.encode("green adidas shirt")
    outputs = session.run({name: array[None] for name, array in encoded.arrays.items()})
    reading = model.decode("green adidas shirt", encoded, {name: array[0] for name, array in outputs.items()})
    assert [entity.type for entity in reading.entities] == ["colour", "brand"]
    assert reading.intent.label == "search"


def test_a_student_learns_from_several_with_an_encoder_of_its_own(teacher, data, tracking, tmp_path_factory):
    encoder = str(write_encoder(tmp_path_factory.mktemp("own")))
    other = run(Order(parse(teaching(encoder, seed=14), "tagging"), data, "shop-14"), tracking, Listener())
    config = student(
        teacher=["shop/1", "shop-14@candidate"],
        model={"kind": "student", "encoder": encoder},
        training={"epochs": 12, "batch_size": 8, "learning_rate": 3e-3, "head_learning_rate": 1e-2, "temperature": 1.0},
    )
    made = run(Order(config, data, "shop-taught"), tracking, Listener())
    manifest = made.bundle.manifest
    assert [one.requested for one in manifest.teacher] == ["shop/1", "shop-14@candidate"]
    assert [one.digest for one in manifest.teacher] == [teacher.bundle.digest, other.bundle.digest]
    assert manifest.encoder.requested == encoder
    assert made.metrics["valid"]["exact_match"] > 0.9
    mean = np.mean([np.load(one.bundle.path / TRANSITIONS) for one in (teacher, other)], axis=0)
    np.testing.assert_array_equal(np.load(made.bundle.path / TRANSITIONS), mean)


def test_an_intent_is_learned_from_several_too(tracking, tmp_path, tmp_path_factory):
    encoder = str(write_encoder(tmp_path_factory.mktemp("own")))
    rows = [{"text": " ".join(tokens), "label": "search"} for tokens in SHOPPING]
    rows += [{"text": " ".join(tokens), "label": "order"} for tokens in ORDERS * 4]
    for split, its in (("train", rows), ("valid", rows[::3])):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, its)))
    for seed in (13, 14):
        raw = teaching(encoder, seed=seed) | {"task": "intent"}
        run(Order(parse(raw, "intent"), tmp_path, f"intent-{seed}"), tracking, Listener())
    training = {"epochs": 12, "batch_size": 8, "learning_rate": 3e-3, "head_learning_rate": 1e-2}
    config = student(
        task="intent",
        teacher=["intent-13@candidate", "intent-14@candidate"],
        model={"kind": "student", "encoder": encoder},
        training=training,
    )
    made = run(Order(config, tmp_path, "intent-taught"), tracking, Listener())
    assert len(made.bundle.manifest.teacher) == 2
    assert made.metrics["valid"]["accuracy"] > 0.9


def test_several_are_as_sure_as_in_the_mean(teacher, data, tracking, tmp_path_factory):
    encoder = str(write_encoder(tmp_path_factory.mktemp("own")))
    other = run(Order(parse(teaching(encoder, seed=15, epochs=1), "tagging"), data, "shop-15"), tracking, Listener())
    paths = [str(one.bundle.path) for one in (teacher, other)]
    first, second, both = (
        Teacher.open(student().model_copy(update={"teacher": tuple(some)})) for some in (paths[:1], paths[1:], paths)
    )
    texts = ["green adidas shirt", "where is my order"]
    chances = [one.chances(texts, 2.0) for one in (first, second, both)]
    np.testing.assert_allclose(chances[2].intents, (chances[0].intents + chances[1].intents) / 2, rtol=1e-5)
    for one, other_one, mean in zip(*(one.tags for one in chances), strict=True):
        np.testing.assert_allclose(mean, (one.astype(np.float32) + other_one.astype(np.float32)) / 2, atol=2e-3)
        np.testing.assert_allclose(mean.astype(np.float32).sum(axis=1), 1, atol=5e-3)


def test_teachers_of_different_labels_are_refused(teacher, data, tracking, tmp_path_factory, tmp_path):
    for split in ("train", "valid"):
        text = (data / f"{split}.jsonl").read_text()
        (tmp_path / f"{split}.jsonl").write_text(text.replace('"label": "order"', '"label": "returns"'))
    encoder = str(write_encoder(tmp_path_factory.mktemp("own")))
    other = run(Order(parse(teaching(encoder, epochs=1), "tagging"), tmp_path, "returns"), tracking, Listener())
    teachers = (str(teacher.bundle.path), str(other.bundle.path))
    with pytest.raises(ConfigError, match=r"answer alike, shop \(.{12}\) and returns \(.{12}\) differ in labels;"):
        Teacher.open(student().model_copy(update={"teacher": teachers}))


@pytest.mark.parametrize("teacher", [[], 3, ["a", 3], None])
def test_what_names_no_teacher_is_refused_in_one_sentence(teacher):
    with pytest.raises(ConfigError, match=r"^teacher: must be a REF \(.*\) or a list of them, got [^;]*$"):
        student(teacher=teacher)
    with pytest.raises(ConfigError, match=r"^teacher: must name each teacher once"):
        student(teacher=["a", "a"])


def test_a_student_reads_tokens_of_its_own(teacher, data, tracking, tmp_path):
    encoder = str(write_encoder(tmp_path, "roberta", OTHER_WORDS))
    config = student(
        model={"kind": "student", "encoder": encoder},
        training={"epochs": 12, "batch_size": 8, "learning_rate": 3e-3, "head_learning_rate": 1e-2},
    )
    made = run(Order(config, data, "shop-other-tokens"), tracking, Listener())
    assert made.metrics["valid"]["exact_match"] > 0.9
    assert made.bundle.manifest.signature.inputs[0].pad == 1
    assert teacher.bundle.manifest.signature.inputs[0].pad == 0
    assert (made.bundle.path / "tokenizer.json").read_text() == (tmp_path / "tokenizer.json").read_text()


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "mpnet"])
def test_what_a_teacher_knows_of_a_token_is_found_in_every_kind_of_encoder(data, tracking, tmp_path, kind):
    encoder = write_encoder(tmp_path, kind)
    made = run(Order(parse(teaching(str(encoder), epochs=1), "tagging"), data, f"shop-{kind}"), tracking, Listener())
    known = Teacher.open(student().model_copy(update={"teacher": (str(made.bundle.path),)})).token_vectors
    n_tags = len(made.bundle.manifest.tags)
    assert known.shape == (N_TOKENS, 16 + 2 + n_tags)
    # The trained table moved away from the pretrained one by less than their own spread.
    table = load_encoder(encoder).get_input_embeddings().weight.detach().numpy()
    centred = table - table.mean(axis=0)
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in zip(known[:, :16], centred, strict=True)]
    assert np.median(correlations) > 0.9


def test_teachers_of_different_tokens_answer_word_by_word(teacher, data, tracking, tmp_path):
    encoder = str(write_encoder(tmp_path, "roberta", OTHER_WORDS))
    other = run(Order(parse(teaching(encoder), "tagging"), data, "shop-pieces"), tracking, Listener())
    paths = (str(teacher.bundle.path), str(other.bundle.path))
    both = Teacher.open(student().model_copy(update={"teacher": paths}))
    assert [len(model.encode("red nike shirt").arrays["input_ids"]) for model in both.models] == [5, 6]
    chances = both.chances(["red nike shirt", "red \x01 nike"], 1.0)
    tags = teacher.bundle.manifest.tags
    likeliest = [[tags[tag] for tag in one.argmax(axis=1)] for one in chances.tags]
    # A word without tokens is outside for either.
    assert likeliest == [["B-colour", "B-brand", "O"], ["B-colour", "O", "B-brand"]]
    assert chances.tags[1][1, tags.index("O")] == 1


def test_a_row_that_a_teacher_cannot_read_is_refused(teacher, data, tmp_path):
    row = {"tokens": ["red"] * 20, "tags": ["B-colour"] * 20, "label": "search"}
    (tmp_path / "train.jsonl").write_text((data / "train.jsonl").read_text() + "\n" + json.dumps(row))
    (tmp_path / "valid.jsonl").write_text((data / "valid.jsonl").read_text())
    with pytest.raises(DataError, match=r"every row of train\.jsonl, 1 are too long for shop"):
        fit(student(), tagging.read(tmp_path, student()), teacher, Listener())


def test_an_encoder_that_reads_less_than_its_teacher_is_refused(teacher, data, tmp_path):
    encoder = write_encoder(tmp_path)
    config = json.loads((encoder / "config.json").read_text()) | {"max_position_embeddings": 12}
    (encoder / "config.json").write_text(json.dumps(config))
    weights = load_file(encoder / "model.safetensors")
    places = "embeddings.position_embeddings.weight"
    save_file(weights | {places: weights[places][:12].contiguous()}, encoder / "model.safetensors", {"format": "pt"})
    settings = student(model={"kind": "student", "encoder": str(encoder)})
    with pytest.raises(ConfigError, match=r"^the teacher's model.max_tokens must be at most the 12 tokens .*, got 16$"):
        fit(settings, tagging.read(data, settings), teacher, Listener())


def test_a_pretrained_encoder_has_its_own_size():
    with pytest.raises(ConfigError, match=r"a pretrained encoder has its own size, .* leave out n_hidden, n_layers"):
        student(model={"kind": "student", "encoder": "some/encoder", "n_layers": 1, "n_hidden": 8})


def fit(config, splits, teacher, listener):
    config = config.model_copy(update={"teacher": (str(teacher.bundle.path),)})
    return distil.fit(config, splits, listener, Checkpoint(teacher.bundle.path / "none", ""))


def test_a_label_that_the_teacher_does_not_know_is_refused(teacher, data, tmp_path):
    row = {"tokens": ["my", "size"], "tags": ["O", "O"], "label": "returns"}
    (tmp_path / "train.jsonl").write_text((data / "train.jsonl").read_text() + "\n" + json.dumps(row))
    (tmp_path / "valid.jsonl").write_text((data / "valid.jsonl").read_text())
    with pytest.raises(DataError, match="shop does not know returns; train it again"):
        fit(student(), tagging.read(tmp_path, student()), teacher, Listener())


def test_a_teacher_of_another_family_is_refused(teacher):
    config = student(task="intent", training={})
    with pytest.raises(ConfigError, match="must be of that family, shop is a model for tagging"):
        Teacher.open(config.model_copy(update={"teacher": (str(teacher.bundle.path),)}))


def test_texts_longer_than_the_teacher_reads_are_left_out_and_said(teacher, data, tmp_path):
    (tmp_path / "long.txt").write_text("red " * 30 + "\nred shirt\n")
    config = student(training={"epochs": 1, "n_generated": 0})
    splits = replace(tagging.read(data, config), unlabelled=read_unlabelled(tmp_path / "long.txt"))
    listener = Listener()
    fitted = fit(config, splits, teacher, listener)
    assert listener.said == ["note: 1 unlabelled or generated texts are longer than is read; left out"]
    assert fitted.parameters()["n_examples"] == len(splits.train) + 1


def test_two_temperatures_of_the_same_answers_lose_what_the_teacher_is_unsure_of():
    wanted = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    for temperature in (1.0, 3.0):
        odds = np.exp(wanted.numpy() / temperature)
        chances = odds / odds.sum(axis=1, keepdims=True)
        entropy = -(chances * np.log(chances)).sum(axis=1).mean()
        found = soft_cross_entropy(wanted, torch.from_numpy(chances), temperature)
        assert found.item() == pytest.approx(temperature**2 * entropy, rel=1e-6)
        assert soft_cross_entropy(wanted.flip(1), torch.from_numpy(chances), temperature) > found


def test_the_loss_of_tags_reads_the_first_token_of_every_word_in_its_window():
    one = Encoded({"input_ids": np.zeros(4, np.int64)}, first_pieces=(1, -1, 2))
    two = Encoded({"input_ids": np.zeros((2, 4), np.int64)}, first_pieces=(1, 2), word_windows=(0, 1), n_windows=2)
    none = Encoded({"input_ids": np.zeros(2, np.int64)}, first_pieces=(-1,))
    generator = np.random.default_rng(0)
    chances = [generator.dirichlet((1, 1), size=n_words).astype(np.float16) for n_words in (3, 2, 1)]
    logits = torch.from_numpy(generator.normal(size=(4, 4, 2)).astype(np.float32))
    # The batch: the text of no word, the one in two windows, the other one.
    chosen, mine = np.array([2, 1, 0]), torch.stack([logits[1, 1], logits[2, 2], logits[3, 1], logits[3, 2]])
    theirs = torch.from_numpy(np.concatenate([chances[1], chances[0][[0, 2]]]).astype(np.float32))
    found = soft_tag_loss(None, [one, two, none], chances, 1.0)({"tag_logits": logits}, chosen)
    torch.testing.assert_close(found, soft_cross_entropy(mine, theirs, 1.0))
    crf = Crf(("O", "B-brand"))
    with torch.no_grad():
        crf.transitions.normal_()
    found = soft_tag_loss(crf, [one, two, none], chances, 2.0)({"tag_logits": logits}, chosen)
    expected = crf.loss_to(theirs.view(2, 2, 2), mine.view(2, 2, 2), torch.tensor([2, 2]), 2.0)
    torch.testing.assert_close(found, expected)
    assert soft_tag_loss(crf, [none], chances[2:], 2.0)({"tag_logits": logits}, np.array([0])).item() == 0
