import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.batch import Encoded, collate, n_rows, split
from models.manifest import Signature, TensorSpec

ROWS = Signature(
    inputs=(TensorSpec(name="ids", dtype="int64", shape=(-1, -1), pad=7),),
    outputs=(TensorSpec(name="logits", dtype="float32", shape=(-1, 2)),),
    layout="rows",
)
CONCAT = Signature(
    inputs=(TensorSpec(name="features", dtype="float32", shape=(-1, 3)),),
    outputs=(TensorSpec(name="score", dtype="float32", shape=(-1,)),),
    layout="concat",
)


def test_rows_are_padded_to_the_longest_with_the_pad_of_the_signature() -> None:
    requests = [Encoded({"ids": np.array(ids)}) for ids in ([1, 2, 3], [4])]
    np.testing.assert_array_equal(collate(requests, ROWS)["ids"], [[1, 2, 3], [4, 7, 7]])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_a_list_gets_back_exactly_its_own_scores(sizes: list[int]) -> None:
    requests = [Encoded({"features": np.full((size, 3), index, np.float32)}) for index, size in enumerate(sizes)]
    batch = collate(requests, CONCAT)
    scores = split({"score": batch["features"][:, 0]}, requests, CONCAT)
    assert [piece["score"].tolist() for piece in scores] == [[float(i)] * size for i, size in enumerate(sizes)]


def test_rows_of_unlike_lists_are_padded_to_the_longest_of_the_batch() -> None:
    tokens = Signature(
        inputs=(TensorSpec(name="ids", dtype="int64", shape=(-1, -1), pad=7),),
        outputs=(TensorSpec(name="score", dtype="float32", shape=(-1,)),),
        layout="concat",
    )
    requests = [Encoded({"ids": np.array([[1, 2, 3]])}), Encoded({"ids": np.array([[4], [5]])})]
    np.testing.assert_array_equal(collate(requests, tokens)["ids"], [[1, 2, 3], [4, 7, 7], [5, 7, 7]])


def test_a_row_gets_back_its_own_outputs() -> None:
    requests = [Encoded({"ids": np.array([row])}) for row in range(3)]
    outputs = split({"logits": np.arange(6.0).reshape(3, 2)}, requests, ROWS)
    assert [output["logits"].tolist() for output in outputs] == [[0, 1], [2, 3], [4, 5]]


def test_a_text_in_windows_is_several_rows_and_one_answer() -> None:
    signature = ROWS.model_copy(
        update={"outputs": (*ROWS.outputs, TensorSpec(name="tags", dtype="float32", shape=(-1, -1, 1)))}
    )
    long = Encoded({"ids": np.array([[1, 2], [3, 4]])}, word_windows=(0, 1), n_windows=2)
    requests = [Encoded({"ids": np.array([5, 6, 7])}), long, Encoded({"ids": np.array([8])})]
    batch = collate(requests, signature)
    np.testing.assert_array_equal(batch["ids"], [[5, 6, 7], [1, 2, 7], [3, 4, 7], [8, 7, 7]])
    assert [n_rows(request, signature) for request in requests] == [1, 2, 1]
    logits, tags = np.arange(8.0).reshape(4, 2), batch["ids"][:, :, None].astype(np.float32)
    first, middle, last = split({"logits": logits, "tags": tags}, requests, signature)
    assert [one["logits"].tolist() for one in (first, middle, last)] == [[0, 1], [3, 4], [6, 7]]
    assert middle["tags"][:, :, 0].tolist() == [[1, 2, 7], [3, 4, 7]]
    assert first["tags"][:, 0].tolist() == [5, 6, 7]
    assert long.length == 2
