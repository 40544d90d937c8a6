"""Places in the list: mid-ranks by hand and by SciPy, whatever order the candidates came in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from models.errors import InputError
from models.in_list import places_in_list
from models.manifest import Contents, PairFeatures, Signature, TensorSpec
from models.ranking import RankingModel, RankRequest, Table, sent_features

CONTENTS = Contents(
    family="ranking",
    features=("price", "stock", "stock_in_list"),
    relative=("stock",),
    signature=Signature(
        inputs=(TensorSpec(name="features", dtype="float32", shape=(-1, 3)),),
        outputs=(TensorSpec(name="score", dtype="float32", shape=(-1,)),),
        layout="concat",
    ),
)

values = st.one_of(st.floats(width=32, allow_infinity=False), st.sampled_from([0.0, 1.0, -1.0, float("nan")]))


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def places(*values: float) -> list[float]:
    return places_in_list(column(*values)[:, None])[:, 0].tolist()


def test_level_values_share_their_place_and_missing_ones_have_none() -> None:
    assert places(3, 1, 1, 7) == [0.625, 0.25, 0.25, 0.875]
    np.testing.assert_array_equal(places(5, np.nan, 2), [0.75, np.nan, 0.25])


def test_where_nothing_differs_every_place_is_the_middle() -> None:
    assert places(9) == [0.5]
    assert places(4, 4, 4) == [0.5, 0.5, 0.5]
    np.testing.assert_array_equal(places(np.nan, 2, np.nan), [np.nan, 0.5, np.nan])
    np.testing.assert_array_equal(places(np.nan, np.nan), [np.nan, np.nan])
    assert places_in_list(np.empty((0, 2), np.float32)).shape == (0, 2)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_places_are_scipys_ranks_in_any_order_of_the_candidates(rows: list[tuple[float, float]], chance) -> None:  # type: ignore[no-untyped-def]
    features_DR = np.array(rows, np.float32)
    found_DR = places_in_list(features_DR)
    ranks_DR = rankdata(features_DR, axis=0, nan_policy="omit")
    expected_DR = (ranks_DR - 0.5) / np.maximum((~np.isnan(features_DR)).sum(axis=0), 1)
    np.testing.assert_allclose(found_DR, expected_DR, rtol=1e-6)
    order = list(range(len(rows)))
    chance.shuffle(order)
    np.testing.assert_array_equal(places_in_list(features_DR[order]), found_DR[order])


@pytest.mark.parametrize("is_table", [False, True])
def test_a_request_gets_the_places_among_its_own_candidates(is_table: bool) -> None:
    matrix = np.array([[1, 30], [2, 10], [3, np.nan]], np.float32)
    names = ("price", "stock")
    features = Table(names, matrix) if is_table else {name: matrix[:, at] for at, name in enumerate(names)}
    request = RankRequest(ids=("a", "b", "c"), features=features)
    model = RankingModel(CONTENTS)
    np.testing.assert_array_equal(
        model.encode(request).arrays["features"], [[1, 30, 0.75], [2, 10, 0.25], [3, np.nan, np.nan]]
    )
    np.testing.assert_array_equal(model.encode(request.take([1])).arrays["features"], [[2, 10, 0.5]])


@pytest.mark.parametrize("is_table", [False, True])
def test_a_place_cannot_be_sent(is_table: bool) -> None:
    names = ("price", "stock", "stock_in_list")
    matrix = np.ones((1, 3), np.float32)
    features = Table(names, matrix) if is_table else {name: matrix[:, at] for at, name in enumerate(names)}
    with pytest.raises(InputError, match="'stock_in_list' is computed from the list, it cannot be sent"):
        RankingModel(CONTENTS).encode(RankRequest(ids=("a",), features=features))


def test_callers_send_what_is_computed_neither_from_texts_nor_from_the_list() -> None:
    assert sent_features(CONTENTS) == ("price", "stock")
    pairs = CONTENTS.model_copy(
        update={
            "features": ("cosine", "price", "cosine_in_list"),
            "relative": ("cosine",),
            "pair_features": PairFeatures(max_tokens=8),
        }
    )
    assert sent_features(pairs) == ("price",)
