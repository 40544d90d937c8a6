import json

import pytest

from models.errors import BundleError
from models.gazetteer import Gazetteer
from models.text import split_words

TERMS = {"brand": ["New Balance", "new", "Nike", "Balance Bikes Ltd"], "product_type": ["balance bike", "Shoes"]}
BRAND, IN_BRAND, KIND, IN_KIND = 1, 2, 4, 8


def match(text, terms=TERMS):
    return Gazetteer(terms).match(split_words(text)).tolist()


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("red NIKE shoes", [0, BRAND, KIND]),
        ("new balance shoes", [BRAND, IN_BRAND, KIND]),
        ("new balance bike", [BRAND, IN_BRAND | KIND, IN_KIND]),
        ("a new bike", [0, BRAND, 0]),
        ("new new balance", [BRAND, BRAND, IN_BRAND]),
        ("(Nike), 'shoes'!", [BRAND, KIND]),
        ("balance bikes", [0, 0]),
        ("nikes", [0]),
        ("", []),
    ],
)
def test_the_longest_term_of_each_type_is_marked_at_its_words(text, bits):
    assert match(text) == bits


def test_terms_beyond_ascii_match_whatever_their_form():
    assert match("CAFÉ straße", {"brand": ["cafe\u0301", "STRASSE"]}) == [BRAND, BRAND]


def test_a_bundle_gives_the_same_matches(tmp_path):
    Gazetteer(TERMS).save(tmp_path)
    loaded = Gazetteer.load(tmp_path)
    assert loaded.types == ("brand", "product_type")
    words = split_words("new balance bike")
    assert loaded.match(words).tolist() == match("new balance bike")
    assert json.loads((tmp_path / "gazetteer.json").read_text())["brand"] == sorted(TERMS["brand"])


@pytest.mark.parametrize("content", [None, "[1]", "{", '{"brand": 3}'])
def test_a_broken_or_absent_file_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "gazetteer.json").write_text(content)
    with pytest.raises(BundleError, match="must hold terms by type"):
        Gazetteer.load(tmp_path)
