import math

import numpy as np
import pytest

from models.errors import ConfigError
from tests.training.test_tagging import write
from training.config import TaggingTransformerConfig
from training.data.splits import TaggingRows
from training.intent_prior import penalties
from training.tagging import read

LABELS = ("order", "search")
TAGS = ("B-brand", "B-number", "I-brand", "O")


def rows(*tags_and_labels):
    tags, labels = zip(*tags_and_labels, strict=True)
    return TaggingRows(tuple(("word",) * len(row) for row in tags), tags, labels, "train.jsonl", "0" * 64)


def test_a_type_that_an_intent_has_more_rarely_than_by_chance_is_penalized():
    # Three of four rows are searches, all with a brand (twice in one of them), and the order has a number.
    found = penalties(
        rows(
            (("B-brand", "I-brand", "O", "B-brand"), "search"),
            (("B-brand", "O"), "search"),
            (("O", "B-brand"), "search"),
            (("O", "B-number"), "order"),
        ),
        LABELS,
        TAGS,
    )
    # By chance 3 x 1/4 orders had a brand, and 3 x 1/4 searches a number; none has.
    apart = math.log(1 / 1.75)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[apart, 0, apart, 0], [0, apart, 0, 0]], rtol=1e-6)


def test_the_more_rows_there_are_without_both_the_higher_the_penalty():
    once = rows((("B-brand",), "search"), (("B-number",), "order"))
    often = rows(*[(("B-brand",), "search")] * 50, *[(("B-number",), "order")] * 50)
    assert penalties(often, LABELS, TAGS)[0, 0] == pytest.approx(math.log(1 / 26))
    assert penalties(once, LABELS, TAGS)[0, 0] == pytest.approx(math.log(1 / 1.5))


def test_rows_without_a_label_have_no_prior(tmp_path):
    write(tmp_path, train=[{"tokens": ["nike"], "tags": ["B-brand"]}] * 2, valid=[{"tokens": ["x"], "tags": ["O"]}])
    config = TaggingTransformerConfig(task="tagging", model={"kind": "transformer", "intent_prior": True})
    with pytest.raises(ConfigError, match=r"intent_prior must be false where rows have no label, as in .*train\.jsonl"):
        read(tmp_path, config)
