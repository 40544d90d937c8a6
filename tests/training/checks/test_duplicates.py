"""Texts that stand twice, however they are written, and answers that contradict each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.checks.duplicates import duplicates, near, normal
from training.checks.finding import Finding
from training.data.splits import IntentRows, TaggingRows


def rows(*pairs: tuple[str, str]) -> IntentRows:
    return IntentRows(tuple(text for text, _ in pairs), tuple(label for _, label in pairs))


def by_rule(found: list[Finding]) -> dict[str, Finding]:
    return {finding.rule: finding for finding in found}


@pytest.mark.parametrize(
    ("one", "other", "is_same", "is_near"),
    [
        ("Red  Shoes", "red shoes", True, True),
        ("ｒｅｄ shoes", "red shoes", True, True),
        ("red t-shirt!", "red t shirt", False, True),
        ("café", "cafe", False, True),
        ("blue shoe", "blue shoes", False, True),
        ("red shoes", "blue shoes", False, False),
        ("size 10", "size 11", False, False),
        ("?!", "…", False, False),
        ("靴", "靴", True, True),
    ],
)
def test_what_counts_as_the_same_text(one: str, other: str, is_same: bool, is_near: bool) -> None:
    assert (normal(one) == normal(other)) == is_same
    assert (near(one) == near(other)) == is_near


@given(st.text(max_size=30))
def test_the_same_texts_are_near_duplicates_too(text: str) -> None:
    assert normal(normal(text)) == normal(text)
    assert near(text.upper().lower()) == near(text.lower())


def test_duplicates_across_splits_and_within_train() -> None:
    train = rows(("red shoes", "search"), ("RED shoes", "search"), ("red shoe!", "search"), ("my order", "order"))
    test = rows(("Red shoes", "search"), ("My orders", "order"), ("new", "order"))
    found = by_rule(duplicates({"train": train, "test": test}))
    assert set(found) == {"duplicates_train_test", "duplicates_train"}
    across = found["duplicates_train_test"]
    assert (across.severity, across.value) == ("warning", 2)
    assert "1 of the 3 test texts (33.3 %) stands in train too, and 1 more nearly so" in across.sentence
    assert across.examples[0] == {
        "text in test": "Red shoes", "row": 1, "answer": "search", "answer in train": "the same", "also": "train row 1"
    }  # fmt: skip
    assert across.examples[1]["also"] == "train row 4: my order"
    within = found["duplicates_train"]
    assert within.value == 2
    assert "1 of the 4 train rows (25.0 %) repeat the text of an earlier one, and 1 more nearly so" in within.sentence
    assert within.examples == ({"text": "red shoes", "times": 3, "forms": 2, "answers": 1},)


def test_contradictions_are_counted_apart_for_same_and_for_near_texts() -> None:
    train = rows(("red shoes", "search"), ("Red shoes", "type"), ("my order", "order"), ("hello", "greet"))
    valid = rows(("my orders", "status"), ("hello", "greet"))
    found = by_rule(duplicates({"train": train, "valid": valid}))
    exact = found["contradictions"]
    assert (exact.severity, exact.value) == ("warning", 1)
    assert exact.examples == ({"text": "red shoes", "rows": 2, "answers": "search (train row 1) / type (train row 2)"},)
    near_ones = found["near_contradictions"]
    assert (near_ones.severity, near_ones.value) == ("note", 1)
    assert near_ones.examples[0]["answers"] == "order (train row 3) / status (valid row 1)"


def test_tags_contradict_each_other_too() -> None:
    train = TaggingRows((("red", "shoes"), ("red", "shoes")), (("B-colour", "O"), ("B-brand", "O")))
    found = by_rule(duplicates({"train": train}))
    assert found["contradictions"].examples[0]["answers"] == "red[B-colour] (train row 1) / red[B-brand] (train row 2)"


def test_few_near_duplicates_are_a_note() -> None:
    train = rows(("red shoes", "search"))
    test = rows(("red shoe", "search"), *[(f"text {n}", "search") for n in range(200)])
    (finding,) = duplicates({"train": train, "test": test})
    assert finding.severity == "note"
    assert "1 of the 201 test texts (0.5 %) stands in train in nearly the same words" in finding.sentence


def test_clean_splits_give_nothing() -> None:
    assert duplicates({"train": rows(("a", "x"), ("b", "y")), "test": rows(("c", "x"))}) == []


@given(st.lists(st.sampled_from(["red", "blue", "green", "Red"]), min_size=1, max_size=12))
def test_the_count_of_repeats_is_that_of_a_set(texts: list[str]) -> None:
    found = by_rule(duplicates({"train": rows(*[(text, "x") for text in texts])}))
    n_repeats = len(texts) - len({text.lower() for text in texts})
    assert (found["duplicates_train"].value if n_repeats else 0) == n_repeats
    assert "contradictions" not in found
