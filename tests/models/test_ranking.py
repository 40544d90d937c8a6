import numpy as np
import pytest

from models.errors import InputError
from models.manifest import Contents, Signature, TensorSpec
from models.ranking import RankingModel, RankRequest

CONTENTS = Contents(
    family="ranking",
    features=("price", "stock", "hour"),
    signature=Signature(
        inputs=(TensorSpec(name="features", dtype="float32", shape=(-1, 3)),),
        outputs=(TensorSpec(name="score", dtype="float32", shape=(-1,)),),
        layout="concat",
    ),
)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_columns_go_to_their_place_and_what_is_absent_stays_missing() -> None:
    request = RankRequest(ids=("a", "b"), features={"stock": column(1, np.nan)}, query_features={"hour": 13})
    np.testing.assert_array_equal(
        RankingModel(CONTENTS).encode(request).arrays["features"], [[np.nan, 1, 13], [np.nan, np.nan, 13]]
    )


def test_an_unknown_feature_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'colour'") as caught:
        RankingModel(CONTENTS).encode(RankRequest(ids=("a",), features={"colour": column(1)}))
    assert caught.value.field == "features.colour"


def test_equal_scores_keep_the_order_they_came_in() -> None:
    request = RankRequest(ids=("a", "b", "c", "d"))
    model = RankingModel(CONTENTS)
    ranked = model.decode(request, model.encode(request), {"score": column(1, 2, 1, 2)})
    assert [(item.id, item.rank) for item in ranked] == [("b", 1), ("d", 2), ("a", 3), ("c", 4)]


class Featurizer:
    names = ("cosine", "list_agreement")

    def transform(self, _query: str, titles: tuple[str, ...]) -> np.ndarray:
        return np.tile(np.float32([0.5, 0.25]), (len(titles), 1))


def test_a_bundle_with_fewer_computed_features_gets_those_that_it_names() -> None:
    contents = CONTENTS.model_copy(update={"features": ("cosine", "price", "hour")})
    model = RankingModel(contents, Featurizer())  # type: ignore[arg-type]
    request = RankRequest(ids=("a",), texts=("x",), features={"price": column(7)})
    np.testing.assert_array_equal(model.encode(request).arrays["features"], [[0.5, 7, np.nan]])
    with pytest.raises(InputError, match="'cosine' is computed from the texts"):
        model.encode(RankRequest(ids=("a",), texts=("x",), features={"cosine": column(7)}))


def test_a_model_that_reads_the_whole_list_gets_a_mask_and_no_endless_list() -> None:
    signature = Signature(
        inputs=(
            TensorSpec(name="features", dtype="float32", shape=(-1, -1, 3)),
            TensorSpec(name="mask", dtype="float32", shape=(-1, -1)),
        ),
        outputs=(TensorSpec(name="score", dtype="float32", shape=(-1, -1)),),
        layout="rows",
    )
    model = RankingModel(CONTENTS.model_copy(update={"signature": signature}))
    np.testing.assert_array_equal(model.encode(RankRequest(ids=("a", "b"))).arrays["mask"], [1, 1])
    with pytest.raises(InputError, match="at most 2000 candidates, got 2001; let a phase before it keep fewer"):
        model.encode(RankRequest(ids=tuple(map(str, range(2001)))))
