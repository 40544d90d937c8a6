import numpy as np
import pytest
import torch

from models.batch import collate, split
from models.errors import ConfigError, DataError
from models.networks.listwise import LogScale, QuantileScale
from models.ranking import RankingModel, RankRequest
from models.session import OnnxSession
from registry.bundle import MODEL
from training import listwise
from training.config import parse
from training.data.splits import RankingRows, Splits
from training.fit import Checkpoint

NAMES = ("price", "popularity", "empty")


class Listener:
    def __init__(self):
        self.said, self.curve = [], []

    def metrics(self, values, _step):
        self.curve.append(values)

    def progress(self, *_):
        pass

    def say(self, sentence):
        self.said.append(sentence)


def rows(n=40, seed=0):
    """Relevance rises with popularity, a third of which is missing, and falls with the price."""
    generator = np.random.default_rng(seed)
    lists, labels = [], []
    for _ in range(n):
        size = int(generator.integers(3, 9))
        popularity = generator.lognormal(size=size).astype(np.float32)
        price = generator.uniform(1, 100, size).astype(np.float32)
        labels.append((popularity > 1).astype(np.float32) + (price < 30))
        popularity[generator.random(size) < 0.1] = np.nan
        columns = {"price": price, "popularity": popularity, "empty": np.full(size, np.nan, np.float32)}
        lists.append(RankRequest(tuple(f"d{i}" for i in range(size)), features=columns))
    labels[0][:], labels[1][:] = 1, 0  # lists that teach nothing
    return RankingRows(tuple(f"q{i}" for i in range(n)), tuple(lists), tuple(labels), NAMES, "train.txt")


def config(**model):
    training = {"epochs": 12, "batch_size": 8, "learning_rate": 0.01}
    return parse(
        {"task": "ranking", "model": {"kind": "listwise", "hidden": [16, 8], **model}, "training": training}, "ranking"
    )


@pytest.fixture(scope="module", params=[0, 1], ids=["rows", "attention"])
def fitted(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("listwise")
    listener = Listener()
    model = {"n_attention_layers": 1, "n_heads": 2} if request.param else {}
    found = listwise.fit(
        config(**model), Splits(rows(), rows(20, 1), None), listener, Checkpoint(directory / "checkpoint", "f")
    )
    contents = found.write(directory)
    return found, RankingModel(contents), OnnxSession(directory / MODEL), listener


def test_it_learns_and_says_what_taught_nothing(fitted):
    _, _, _, listener = fitted
    assert listener.curve[-1]["valid_ndcg@10"] > 0.9
    n_flat = sum(len(set(labels.tolist())) == 1 for labels in rows().labels)
    assert n_flat >= 2
    assert f"{n_flat} of the 40 queries of train.txt have documents of one relevance only" in listener.said


def test_onnx_answers_as_pytorch_alone_and_in_any_batch(fitted):
    found, model, session, _ = fitted
    encoded = [model.encode(request) for request in rows(9, 2).lists]
    expected = found.outputs(encoded)
    signature = found.contents.signature
    together = split(session.run(collate(encoded, signature)), encoded, signature)
    for one, wanted, joined in zip(encoded, expected, together, strict=True):
        alone = split(session.run(collate([one], signature)), [one], signature)[0]["score"]
        assert alone.shape == wanted["score"].shape == (one.length,)
        np.testing.assert_allclose(alone, wanted["score"], atol=1e-5)
        np.testing.assert_allclose(joined["score"], alone, atol=1e-5)


def test_one_document_and_the_order_of_arrival_are_read(fitted):
    found, model, session, _ = fitted
    signature = found.contents.signature

    def scores(request):
        encoded = model.encode(request)
        return session.run(collate([encoded], signature))["score"].reshape(-1)

    one = rows(9, 2).lists[0]
    backwards = RankRequest(one.ids[::-1], features={name: column[::-1] for name, column in one.features.items()})
    np.testing.assert_allclose(scores(backwards)[::-1], scores(one), atol=1e-5)
    assert np.isfinite(scores(RankRequest(("d",), features={"price": np.array([3.0], np.float32)}))).all()


def test_only_attention_reads_the_rest_of_the_list(fitted):
    found, model, session, _ = fitted
    signature = found.contents.signature
    request = rows(9, 2).lists[0]
    first = RankRequest(request.ids[:2], features={name: column[:2] for name, column in request.features.items()})
    whole, part = (
        session.run(collate([model.encode(one)], signature))["score"].reshape(-1)[:2] for one in (request, first)
    )
    assert np.allclose(whole, part, atol=1e-5) == (signature.layout == "concat")


def test_quantiles_are_places_among_the_values_of_training():
    scale = QuantileScale(np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [4.0, np.nan]], np.float32))
    places = scale(torch.tensor([[-9.0, 5.0], [0.0, 7.0], [1.0, 5.0], [4.0, 5.0], [99.0, 5.0]]))
    # A third of the way along the values 0, 1, 2, 4 stands 1: from -1 to 1 that is -1/3.
    np.testing.assert_allclose(places[:, 0], [-1, -1, -1 / 3, 1, 1], atol=1e-2)
    np.testing.assert_array_equal(places[:, 1], 0)


def test_quantiles_never_fall_and_jump_where_half_of_the_values_are_equal():
    generator = np.random.default_rng(0)
    column = np.concatenate([np.zeros(50), generator.exponential(size=50)]).astype(np.float32)
    scale = QuantileScale(column[:, None])
    places = scale(torch.linspace(-1, 9, 500)[:, None])[:, 0]
    assert (places.diff() >= -1e-6).all()
    assert scale(torch.tensor([[0.0], [1e-6]])).flatten().tolist() == pytest.approx([-1, 0], abs=0.07)


def test_logarithms_are_standardised():
    column = np.array([0, np.e - 1, 1 - np.e, np.nan], np.float32)
    scale = LogScale(np.stack([column, np.full(4, np.nan, np.float32)], axis=1))
    found = scale(torch.tensor([[0.0, 1.0], [float(np.e - 1), 2.0]]))
    np.testing.assert_allclose(found, [[0, 0], [np.sqrt(1.5), 0]], atol=1e-5)


def test_a_setting_of_attention_without_attention_is_refused():
    with pytest.raises(ConfigError, match="n_heads does nothing without n_attention_layers"):
        config(n_heads=2)
    with pytest.raises(ConfigError, match="must be a multiple of n_heads"):
        config(n_attention_layers=1, n_heads=3)


def test_lists_of_one_relevance_alone_teach_nothing(tmp_path):
    same = rows(3)
    flat = RankingRows(same.query_ids, same.lists, tuple(one * 0 for one in same.labels), NAMES, "train.txt")
    with pytest.raises(DataError, match=r"train.txt must have a query whose documents differ"):
        listwise.fit(config(), Splits(flat, rows(), None), Listener(), Checkpoint(tmp_path, "f"))
