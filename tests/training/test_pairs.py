import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from models.errors import ConfigError, DataError
from models.networks.transformer import load_encoder
from models.ranking import RankRequest
from tests.tiny_encoder import write_encoder
from training.config import PairsModel, RankingPairsConfig
from training.data.splits import RankingRows
from training.pairs import fit_featurizer

TITLES = ("red nike shoe", "blue adidas shirt size 10", "green shoe")


class Notes:
    def __init__(self):
        self.sentences, self.steps = [], []

    def metrics(self, *_):
        raise AssertionError("a featurizer has no metrics")

    def progress(self, _, *steps):
        self.steps.append(steps)

    def say(self, sentence):
        self.sentences.append(sentence)


def rows(texts=TITLES, ids=("a", "b", "a")):
    labels = np.array([2, 0, 1], np.float32)
    return RankingRows(("q1",), (RankRequest(ids, "red shoes", texts),), (labels,), file="train.jsonl")


def config(encoder, max_tokens=64):
    model = PairsModel(kind="pairs", encoder=str(encoder), max_tokens=max_tokens)
    return RankingPairsConfig(task="ranking", model=model)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def fitted(encoder):
    notes = Notes()
    return fit_featurizer(config(encoder), rows(), notes), notes


def test_the_cosine_is_that_of_the_source_encoder_within_int8(encoder, fitted):
    featurizer, _ = fitted
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    network = load_encoder(encoder).eval()
    vectors = []
    for text in ("red shoes", *TITLES):
        with torch.inference_mode():
            states = network(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state
        vectors.append(torch.nn.functional.normalize(states.mean(1), dim=1)[0])
    expected = [float(vectors[0] @ vector) for vector in vectors[1:]]
    np.testing.assert_allclose(featurizer.transform("red shoes", TITLES)[:, 0], expected, atol=0.02)


def test_a_vector_does_not_depend_on_its_neighbours(fitted):
    featurizer, _ = fitted
    together = featurizer.transform("where is my order", [*TITLES, "red " * 40, "blue"])
    alone = featurizer.transform("where is my order", ["blue"])
    cosine = featurizer.names.index("cosine")
    assert together[-1, cosine] == alone[0, cosine]


def test_the_export_prints_nothing(encoder, capfd):
    fit_featurizer(config(encoder), rows(), Notes())
    assert capfd.readouterr().out == ""


def test_progress_ends_full_and_repeated_judgments_are_said(fitted):
    _, notes = fitted
    assert notes.steps[-1] == (4, 4)
    assert notes.sentences[0].startswith("rows of train.jsonl that judge a document of their list once more: 1")


def test_rows_without_titles_are_refused(encoder):
    with pytest.raises(DataError, match="must have a title for every document of query q1"):
        fit_featurizer(config(encoder), rows(texts=None), Notes())


def test_more_tokens_than_the_encoder_reads_are_refused(encoder):
    with pytest.raises(ConfigError, match=r"max_tokens must be at most the 64 tokens .* got 65") as caught:
        fit_featurizer(config(encoder, max_tokens=65), rows(), Notes())
    assert caught.value.field == "model.max_tokens"
