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
