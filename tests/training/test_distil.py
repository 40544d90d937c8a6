import gzip
import json

import pytest

from models.model import open_model
from models.session import OnnxSession
from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.tiny_encoder import write_encoder
from tests.training.test_network import ORDERS, SHOPPING, TAGS, Listener
from training.config import parse
from training.line import Order, run

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
    raw = {
        "task": "tagging",
        "model": {"kind": "transformer", "encoder": encoder, "max_tokens": 16},
        "training": {"epochs": 12, "batch_size": 8, "learning_rate": 3e-3, "head_learning_rate": 1e-2},
        "evaluate": EVALUATE,
        "quantize": {"max_loss": 1.0},
    }
    return run(Order(parse(raw, "tagging"), data, "shop"), tracking, Listener())


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
