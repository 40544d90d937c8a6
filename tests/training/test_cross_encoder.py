import json

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer, processors

from models.batch import collate, split
from models.errors import ConfigError, DataError
from models.model import open_model
from models.networks.cross_encoder import CrossEncoderNetwork
from models.networks.transformer import load_encoder
from models.pairs import PairEncoder, trimmed
from models.ranking import RankRequest
from models.session import OnnxSession
from registry import golden
from registry.bundle import MODEL, MODEL_INT8, open_bundle
from registry.tracking import Tracking
from registry.workspace import Workspace
from tests.tiny_encoder import write_encoder
from training import cross_encoder, line, ranking
from training.config import parse
from training.export import network_to_onnx
from training.fit import Checkpoint
from training.quantization.quantizer import quantize
from training.terminal import Terminal

pytestmark = pytest.mark.usefixtures("one_thread")

COLOURS, THINGS = ("red", "blue", "green"), ("shoe", "shirt", "order")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Its tokenizer's template of a pair is BERT's."""
    directory = write_encoder(tmp_path_factory.mktemp("encoder"))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A title is as relevant as it has words of its query: colour and thing."""
    directory = tmp_path_factory.mktemp("pairs")
    for split_name, n in (("train", 9), ("valid", 4), ("test", 3)):
        lines = []
        for number in range(n):
            colour, thing = COLOURS[number % 3], THINGS[number // 3 % 3]
            titles = [f"nike {c} {t} size 10" for c in COLOURS for t in THINGS] + [f"{colour} " * 20]
            for place, title in enumerate(titles):
                label = (colour in title) + (thing in title)
                row = {"query_id": f"{split_name}{number}", "query": f"{colour} {thing}", "doc_id": str(place)}
                lines.append(json.dumps({**row, "title": title, "label": label, "features": {"price": 1.0}}) + "\n")
        (directory / f"{split_name}.jsonl").write_text("".join(lines))
    return directory


def config(encoder, max_tokens=16, reads_apart=False, **training):
    return parse(
        {
            "task": "ranking",
            "model": {
                "kind": "cross_encoder", "encoder": str(encoder), "max_tokens": max_tokens, "reads_apart": reads_apart
            },
            "training": {
                "epochs": 3, "list_size": 4, "learning_rate": 3e-3, "head_learning_rate": 1e-2, **training
            },
            "evaluate": {"n_resamples": 100},
            "quantize": {"max_loss": 1.0},
        },
        "ranking",
    )  # fmt: skip


def test_it_goes_through_every_step_and_what_is_cut_or_left_out_is_said(encoder, data, tmp_path, capfd):
    workspace = Workspace(tmp_path / "workspace")
    trained = line.run(line.Order(config(encoder), data, "cross"), Tracking(workspace), Terminal())
    said = capfd.readouterr().err
    assert "9 of the 90 titles of train.jsonl are cut to fit model.max_tokens" in said
    assert "a cross-encoder reads texts alone: the features of train.jsonl (price) are left out" in said
    bundle = open_bundle(trained.bundle.path)
    assert {MODEL, MODEL_INT8, "tokenizer.json", "golden.json"} <= set(bundle.manifest.files)
    assert bundle.manifest.pair_text.max_tokens == 16
    assert trained.report.parity.n_changed_decisions == 0
    for variant in ("float32", "int8"):
        golden.check(bundle, variant, OnnxSession(bundle.model_file(variant)).run)
    golden.check_encoding(bundle, open_model(bundle.path, bundle.manifest).encode)
    assert line.evaluate_file(bundle, data / "test.jsonl").metrics == trained.metrics["test"]


@pytest.fixture(scope="module", params=[False, True], ids=["together", "apart"])
def fitted(encoder, data, tmp_path_factory, request):
    """A network with a trained head: an untrained one is its cosine alone."""
    directory = tmp_path_factory.mktemp("fitted")
    settings = config(encoder, epochs=12, patience=12, reads_apart=request.param)
    found = cross_encoder.fit(
        settings, ranking.read(data, settings), Terminal(), Checkpoint(directory / "checkpoint", "f")
    )
    contents = found.write(directory)
    return found, open_model(directory, contents), directory


def test_it_learns_which_titles_have_the_words_of_the_query(fitted):
    found, model, _ = fitted
    request = RankRequest(("a", "b", "c"), "green order", ("nike red shirt size 10", "nike green order", "green shoe"))
    encoded = model.encode(request)
    assert model.decode(request, encoded, found.outputs([encoded])[0])[0].id == "b"


@pytest.mark.parametrize("variant", ["float32", "int8"])
def test_a_pair_is_scored_alike_alone_in_blocks_and_beside_longer_ones(fitted, variant):
    found, model, directory = fitted
    if variant == "int8":
        quantize(directory / MODEL, directory / MODEL_INT8)
    session = OnnxSession(directory / (MODEL if variant == "float32" else MODEL_INT8))
    signature = found.contents.signature
    titles = tuple(f"nike {' '.join([colour] * n)} shirt" for n in (1, 3, 9) for colour in COLOURS) * 3
    lists = [model.encode(RankRequest(tuple(map(str, range(len(t)))), "red shoe", t)) for t in (titles, titles[:2])]
    together = split(session.run(collate(lists, signature)), lists, signature)
    blocks = model.blocks(lists[0])
    assert sorted(np.concatenate(blocks)) == list(range(len(titles)))
    for rows in blocks:
        alone = session.run(collate([trimmed(lists[0], rows)], signature))["score"]
        np.testing.assert_allclose(alone, together[0]["score"][rows], atol=1e-5)
    np.testing.assert_allclose(together[1]["score"], together[0]["score"][:2], atol=1e-5)
    if variant == "float32":
        for one, answer in zip(lists, found.outputs(lists), strict=True):
            np.testing.assert_allclose(session.run(collate([one], signature))["score"], answer["score"], atol=1e-5)


def test_the_mask_of_texts_read_apart_is_exported_as_one_of_the_fused_attention(fitted):
    _, _, directory = fitted
    operators = [node.op_type for node in onnx.load(directory / MODEL).graph.node]
    assert operators.count("MultiHeadAttention") == 2


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "mpnet"])
def test_other_encoders_read_apart_by_fused_attention_too(tmp_path, kind):
    encoder = load_encoder(write_encoder(tmp_path, kind))
    network_to_onnx(CrossEncoderNetwork(encoder, separator=3, dropout=0.0, reads_apart=True), tmp_path / MODEL)
    operators = [node.op_type for node in onnx.load(tmp_path / MODEL).graph.node]
    assert operators.count("MultiHeadAttention") == 2


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "mpnet"])
def test_read_apart_a_text_has_the_states_that_it_has_alone(tmp_path, kind):
    encoder = load_encoder(write_encoder(tmp_path / kind, kind)).eval()
    network = CrossEncoderNetwork(encoder, separator=3, dropout=0.0, reads_apart=True).eval()
    query, title = [2, 4, 9, 3], [2, 5, 6, 10, 3]
    ids = torch.tensor([[*query, *title, 0, 0]])
    with torch.inference_mode():
        states = network.states(ids, torch.tensor([[1] * 9 + [0] * 2]))[0]
        for text, begin in ((query, 0), (title, 4)):
            alone = encoder(input_ids=torch.tensor([text])).last_hidden_state[0]
            torch.testing.assert_close(states[begin : begin + len(text), :-1], alone, atol=1e-5, rtol=1e-5)


def test_texts_apart_keep_their_own_special_tokens_and_only_the_title_is_cut(encoder):
    pairs = PairEncoder(encoder / "tokenizer.json", 10, 0, is_apart=True)
    encoded = pairs.encode("red shoe", ("nike shirt", "blue " * 9)).arrays["input_ids"]
    assert encoded.tolist() == [[2, 4, 9, 3, 2, 7, 11, 3, 0, 0], [2, 4, 9, 3, 2, 5, 5, 5, 5, 3]]
    assert pairs.separator == 3


def test_before_training_the_order_is_that_of_the_cosine(encoder, data, tmp_path):
    settings = config(encoder, epochs=1, learning_rate=1e-12, head_learning_rate=1e-12)
    found = cross_encoder.fit(settings, ranking.read(data, settings), Terminal(), Checkpoint(tmp_path, "f"))
    ids, mask = torch.tensor([[2, 4, 9, 3, 4, 9, 3, 0]]), torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0]])
    with torch.inference_mode():
        states = found.network.states(ids, mask)
        query, title = states[0, :4, :-1].mean(0), states[0, 4:7, :-1].mean(0)
        expected = 5 * (torch.cosine_similarity(query, title, dim=0) - 0.5)
        assert found.network(ids, mask)["score"].item() == pytest.approx(expected.item(), abs=1e-4)
    assert states[0, :, -1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_query_that_leaves_no_room_is_refused(encoder, data, tmp_path):
    (tmp_path / "data").mkdir()
    for file in data.iterdir():
        (tmp_path / "data" / file.name).write_text(file.read_text().replace('"red shoe"', f'"{"red " * 9}"'))
    settings = config(encoder, max_tokens=8)
    with pytest.raises(DataError, match=r"query train0 of train.jsonl: a query must have at most 4 tokens"):
        cross_encoder.fit(settings, ranking.read(tmp_path / "data", settings), Terminal(), Checkpoint(tmp_path, "f"))


def test_a_tokenizer_that_does_not_end_a_query_is_refused(data, tmp_path):
    write_encoder(tmp_path / "bare")
    tokenizer = Tokenizer.from_file(str(tmp_path / "bare" / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    tokenizer.save(str(tmp_path / "bare" / "tokenizer.json"))
    settings = config(tmp_path / "bare")
    with pytest.raises(ConfigError, match="must end a query with a token of its own"):
        cross_encoder.fit(settings, ranking.read(data, settings), Terminal(), Checkpoint(tmp_path, "f"))
