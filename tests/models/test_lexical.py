import math

import numpy as np
import pytest

from models.lexical import LEXICAL_NAMES, Corpus, lexical_features, read, term

TITLES = ("Nike red shoes 10 oz", "Blue shoe, red lace", "Hats")
CORPUS = Corpus.of(map(read, TITLES))


def features(query, *titles, corpus=CORPUS):
    rows = lexical_features(read(query), [read(title) for title in titles], corpus)
    return [dict(zip(LEXICAL_NAMES, row.tolist(), strict=True)) for row in rows]


def test_words_are_lower_case_without_accents_and_split_between_letters_and_digits():
    assert read("Crème-brûlée SET, 40oz 2.5in Levi's").words == (
        *("creme", "brulee", "set", "40", "oz", "2.5", "in", "levis"),
    )


@pytest.mark.parametrize(
    ("word", "singular"),
    [("shoes", "shoe"), ("batteries", "battery"), ("dress", "dress"), ("nexus", "nexus"), ("bus", "bus")],
)
def test_terms_are_singular_as_harmans_s_stemmer_says(word, singular):
    assert term(word) == singular


def test_units_have_one_short_form():
    assert read("8 ounces").terms == read("8oz").terms == ("8", "oz")


def test_a_corpus_counts_the_titles_that_hold_a_term():
    assert (CORPUS.n_titles, CORPUS.mean_words) == (3, 10 / 3)
    assert CORPUS.counts["shoe"] == 2
    assert CORPUS.counts["hat"] == 1
    np.testing.assert_allclose(CORPUS.idf(["shoe", "cap"]), [math.log(1 + 1.5 / 2.5), math.log(1 + 3.5 / 0.5)])


def test_overlap_by_hand():
    first, second, third = features("red shoes", *TITLES)
    red = shoe = math.log(1 + 1.5 / 2.5)
    assert [first["word_coverage"], second["word_coverage"], third["word_coverage"]] == [1, 0.5, 0]
    assert [first["idf_coverage"], second["idf_coverage"], third["idf_coverage"]] == pytest.approx([1, 1, 0])
    assert [first["jaccard"], second["jaccard"], third["jaccard"]] == pytest.approx([2 / 5, 2 / 4, 0])
    length = 1.2 * (0.25 + 0.75 * 5 / (10 / 3))
    assert first["bm25"] == pytest.approx((red + shoe) * 2.2 / (1 + length))
    assert [first["longest_run"], second["longest_run"], third["longest_run"]] == [1, 0.5, 0]
    assert [first["first_position"], second["first_position"]] == [1, 1]
    assert math.isnan(third["first_position"])
    assert [first["last_word_found"], second["last_word_found"], third["last_word_found"]] == [1, 1, 0]
    assert [first["opens_alike"], second["opens_alike"]] == [0, 0]
    assert [first["title_words"], third["title_words"], first["query_words"]] == [5, 1, 2]


def test_trigrams_are_counted_once():
    # " ab", "abc", "bc " of the query; "abc" and "bc " of "xabc".
    (row,) = features("abc", "xabc xabc")
    assert row["trigram_coverage"] == pytest.approx(2 / 3)


def test_a_misspelt_word_is_near_its_spelling_and_far_from_others():
    near, far = features("adidas fragance", "adidas fragrance", "adidas towels")
    unknown = math.log(1 + 3.5 / 0.5)
    # Longest common subsequence of "fragance" (8) and "fragrance" (9): 8 letters.
    assert near["fuzzy_coverage"] == pytest.approx((unknown + unknown * 16 / 17) / (2 * unknown))
    assert far["fuzzy_coverage"] == pytest.approx(0.5)


def test_numbers_agree_only_with_their_unit():
    rows = features("8 ounce jar", "Jar 8oz", "Jar 8 inch", "Set of 8 jars, 12 oz")
    assert [row["number_coverage"] for row in rows] == [1, 0, 0]
    assert features("iphone 5", "iPhone 5 case")[0]["number_coverage"] == 1
    assert math.isnan(features("iphone", "iPhone 5 case")[0]["number_coverage"])


@pytest.mark.parametrize(("query", "title"), [("", "red"), ("red", ""), ("?!", "red"), ("red", " - "), ("", "")])
def test_what_is_undefined_without_words_is_missing(query, title):
    (row,) = features(query, title)
    n_title, n_query = row.pop("title_words"), row.pop("query_words")
    assert (n_title, n_query) == (int(title == "red"), int(query == "red"))
    assert all(math.isnan(value) for value in row.values())


def test_a_title_without_words_leaves_its_neighbours_alone():
    alone = lexical_features(read("red"), [read("red hat")], CORPUS)
    among = lexical_features(read("red"), [read(""), read("red hat"), read("!")], CORPUS)
    np.testing.assert_array_equal(among[1], alone[0])


def test_an_empty_list_has_no_rows():
    assert lexical_features(read("red"), [], CORPUS).shape == (0, len(LEXICAL_NAMES))
