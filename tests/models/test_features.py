"""The featurizer over a hand-made encoder: one dimension a word, so that every cosine can be said by hand."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BundleError, InputError
from models.features import PairFeaturizer, write_corpus
from models.lexical import Corpus, read
from models.manifest import PairFeatures
from models.text_cache import TextCache
from tests.word_encoder import WORDS, write_encoder

TITLES = ("Nike red shoes", "blue shirt size 10", "red shirt", "shoes")
SETTINGS = PairFeatures(max_tokens=4)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("featurizer")
    write_encoder(directory)
    write_corpus(directory / "features.json", Corpus.of(map(read, TITLES)))
    return directory


@pytest.fixture(scope="module")
def featurizer(directory):
    return PairFeaturizer.load(directory, SETTINGS)


def cosines(featurizer, query, *titles):
    return featurizer.transform(query, titles)[:, featurizer.names.index("cosine")]


def test_a_row_has_a_column_for_every_name(featurizer):
    features_DF = featurizer.transform("red shoes", TITLES)
    assert features_DF.shape == (4, featurizer.n_features) == (4, len(featurizer.names))
    assert features_DF.dtype == np.float32
    assert featurizer.transform("red shoes", []).shape == (0, featurizer.n_features)
    assert featurizer.rising < set(featurizer.names)


def test_cosines_by_hand(featurizer):
    np.testing.assert_allclose(
        cosines(featurizer, "red shoes", "Nike red shoes", "red shirt", "blue shirt"),
        [2 / math.sqrt(6), 1 / 2, 0],
        rtol=1e-6,
    )


def test_a_long_title_is_cut_for_the_embedding_only(featurizer):
    cut = featurizer.transform("shoes", ["nike red blue shirt shoes"])[0]
    assert cut[featurizer.names.index("cosine")] == 0
    assert cut[featurizer.names.index("word_coverage")] == 1


def test_a_blank_text_has_no_cosine(featurizer):
    assert np.isnan(cosines(featurizer, "red", "", " ", "red")).tolist() == [True, True, False]
    assert np.isnan(cosines(featurizer, "", "red")).all()


@given(
    query=st.lists(st.sampled_from((*WORDS, "shoe", "10oz", "8", "")), max_size=12).map(" ".join),
    titles=st.lists(st.lists(st.sampled_from((*WORDS, "shoe", "10 ounces")), max_size=12).map(" ".join), max_size=9),
)
def test_all_features_but_one_depend_on_the_pair_alone_to_the_last_bit(featurizer, query, titles):
    others = [place for place, name in enumerate(featurizer.names) if name != "list_agreement"]
    together = featurizer.transform(query, titles)
    for title, row in zip(titles, together, strict=True):
        np.testing.assert_array_equal(featurizer.transform(query, [title])[0][others], row[others])


def agreements(featurizer, query, *titles):
    return featurizer.transform(query, titles)[:, featurizer.names.index("list_agreement")]


def test_agreement_with_the_list_by_hand(featurizer):
    # Cosines with the query 1, 1/sqrt(2), 0; of the titles with each other 1/sqrt(2), 0 and 1/sqrt(2), 0.
    half = 1 / math.sqrt(2)
    weights = [math.exp(10), math.exp(10 * half), 1]
    found = agreements(featurizer, "red", "red", "red shoes", "shoes")
    expected = [
        weights[1] * half / (weights[1] + weights[2]),
        (weights[0] * half + weights[2] * half) / (weights[0] + weights[2]),
        weights[1] * half / (weights[0] + weights[1]),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_agreement_is_missing_without_another_title_or_a_vector(featurizer):
    assert np.isnan(agreements(featurizer, "red", "red shoes")).all()
    assert np.isnan(agreements(featurizer, "", "red", "shoes")).all()
    assert np.isnan(agreements(featurizer, "red", "red", "", "shoes")).tolist() == [False, True, False]


@given(st.permutations(range(5)))
def test_agreement_knows_no_order_of_the_list(featurizer, order):
    titles = ["red shoes", "red shoes", "blue nike", "nike", "size 10"]
    found = agreements(featurizer, "red nike", *(titles[place] for place in order))
    np.testing.assert_allclose(found, agreements(featurizer, "red nike", *titles)[list(order)], rtol=1e-6)


def test_what_was_saved_answers_alike(featurizer, tmp_path):
    featurizer.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.onnx", "features.json", "tokenizer.json"]
    np.testing.assert_array_equal(
        PairFeaturizer.load(tmp_path, SETTINGS).transform("red nike", TITLES), featurizer.transform("red nike", TITLES)
    )


def bits(features_DF):
    return features_DF.view(np.uint32).tolist()


@settings(deadline=None, max_examples=30)
@given(lists=st.lists(st.lists(st.sampled_from([*TITLES, "", "red", "Straße 10"]), max_size=6), max_size=6))
def test_a_cache_of_any_size_changes_no_bit(directory, featurizer, lists):
    caches = [TextCache(0), TextCache(1_500), TextCache(None)]
    others = [PairFeaturizer.load(directory, SETTINGS, texts=texts) for texts in caches]
    for titles in lists:
        expected = bits(featurizer.transform("red shoes", titles))
        for other in others:
            assert bits(other.transform("red shoes", titles)) == expected


def test_a_prepared_text_is_not_embedded_again_by_any_version_of_the_same_encoder(directory, tmp_path, monkeypatch):
    first = PairFeaturizer.load(directory, SETTINGS)
    first.prepare(["red", *TITLES])
    first.save(tmp_path)
    write_corpus(tmp_path / "features.json", Corpus.of(map(read, TITLES[:2])))
    second = PairFeaturizer.load(tmp_path, SETTINGS, texts=first.texts)
    alone = PairFeaturizer.load(tmp_path, SETTINGS)
    monkeypatch.setattr(second._encoder, "embed", None)
    assert bits(second.transform("red", TITLES)) == bits(alone.transform("red", TITLES))
    assert bits(second.transform("red", TITLES)) != bits(first.transform("red", TITLES))


def test_another_encoder_finds_nothing_of_the_first_one_s(directory):
    first = PairFeaturizer.load(directory, SETTINGS)
    first.prepare(["blue shirt size 10 red"])
    # Reads another number of tokens, and so makes another vector of the same text.
    second = PairFeaturizer.load(directory, PairFeatures(max_tokens=5), texts=first.texts)
    assert cosines(second, "red", "blue shirt size 10 red") == pytest.approx([1 / math.sqrt(5)])
    assert len(first.texts) == 3


def test_many_threads_get_the_same_features(directory, featurizer):
    shared = PairFeaturizer.load(directory, SETTINGS, texts=TextCache(3_000))
    expected = featurizer.transform("red nike shirt", TITLES)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: shared.transform("red nike shirt", TITLES), range(64)):
            np.testing.assert_array_equal(found, expected)


def test_half_a_character_is_refused(featurizer):
    with pytest.raises(InputError, match="lone surrogate"):
        featurizer.transform("red", ["\ud800"])


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", json.dumps({"n_titles": 1, "mean_words": 1, "terms": ["a"], "counts": []})]
)
def test_broken_statistics_are_refused_by_name(featurizer, tmp_path, content):
    featurizer.save(tmp_path)
    (tmp_path / "features.json").write_text(content)
    with pytest.raises(BundleError, match=r"features\.json must hold"):
        PairFeaturizer.load(tmp_path, SETTINGS)


def test_a_broken_tokenizer_is_refused_by_name(featurizer, tmp_path):
    featurizer.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json must be a tokenizer"):
        PairFeaturizer.load(tmp_path, SETTINGS)
