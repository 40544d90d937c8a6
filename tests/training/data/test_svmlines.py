"""Both ways to read lines of SVMrank give the same columns, and neither takes what the other refuses."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data import svmlines
from training.data.svmlines import BadLineError, Dense, Sparse, parse

NUMBERS = st.one_of(
    st.floats(-(2.0**99), 2.0**99, width=32).map(repr),
    st.integers(-9, 9).map(str),
    st.sampled_from(["nan", "1e-3", ".5", "+2."]),
)


def by_tokens(text: bytes, first_line: int) -> svmlines.Chunk:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(svmlines, "_parse_alike", lambda *_: None)
        return parse(text, first_line)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), features=st.lists(st.integers(0, 60), min_size=1, max_size=7, unique=True))
def test_lines_alike_are_read_at_once_and_as_tokens_are(data: st.DataObject, features: list[int]) -> None:
    comment = data.draw(st.sampled_from(["", " # docid = D{} inc = 1", "#{}"]))
    space = data.draw(st.sampled_from([" ", "\t"]))
    lines = []
    for number in range(data.draw(st.integers(1, 6))):
        values = [data.draw(NUMBERS) for _ in features]
        pairs = space.join(f"{feature}:{value}" for feature, value in zip(features, values, strict=True))
        lines.append(
            f"{data.draw(st.integers(0, 4))} qid:{data.draw(st.integers(1, 3))} {pairs}{comment.format(number)}\n"
        )
    text = "".join(lines).encode()
    found, expected = parse(text, 7), by_tokens(text, 7)
    assert isinstance(found.entries, Dense)
    assert isinstance(expected.entries, Sparse)
    assert found.lines == expected.lines == list(range(7, 7 + len(lines)))
    assert found.query_ids == expected.query_ids
    assert found.doc_ids == expected.doc_ids
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.entries.features.tolist() == features
    values = np.full(found.entries.values.shape, np.nan, dtype=np.float32)
    values[expected.entries.rows, [features.index(one) for one in expected.entries.features]] = expected.entries.values
    np.testing.assert_array_equal(found.entries.values, values)


@pytest.mark.parametrize(
    "line",
    [
        "1 qid:1 1 5:2:3",
        "1:qid 1:1 5:2:3",
        "1 qid:1 1:1 5:",
        "1 qid:1 :1 5:2",
        "1 kid:1 1:1 5:2",
        "1 qid:1 0x1:1 5:2",
        "1 qid:1 -1:1 5:2",
        "1 qid:1 1:1 1:2",
        "1 qid:1 1:1 5:null",
        "x qid:1 1:1 5:2",
        "1 qid:1 100001:1 5:2",
    ],
)
@pytest.mark.parametrize("n_lines_before", [0, 1])
def test_a_line_that_breaks_the_format_is_refused_first_or_last(line: str, n_lines_before: int) -> None:
    with pytest.raises((BadLineError, pa.ArrowInvalid)):
        parse(("1 qid:1 1:1 5:2\n" * n_lines_before + line + "\n").encode(), 1)


def test_lines_of_unlike_features_and_blank_ones_are_read_as_tokens() -> None:
    chunk = parse(b"1 qid:1 1:1 2:2\n\n0 qid:1 2:3 1:4\n", 1)
    assert isinstance(chunk.entries, Sparse)
    assert chunk.lines == [1, 3]
    assert chunk.entries.features.tolist() == [1, 2, 2, 1]
