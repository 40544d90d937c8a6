"""Balance of labels and entity types, and labels that a text gives away."""

from training.checks.classes import classes
from training.checks.finding import Finding
from training.data.splits import IntentRows, TaggingRows


def rows(**counts: int) -> IntentRows:
    labels = [label for label, n in counts.items() for _ in range(n)]
    return IntentRows(tuple(f"text {number}" for number in range(len(labels))), tuple(labels))


def by_rule(found: list[Finding]) -> dict[str, Finding]:
    return {finding.rule: finding for finding in found}


def test_balance_rare_and_unseen_labels() -> None:
    found = by_rule(classes({"train": rows(search=40, order=10, refund=4), "test": rows(search=2, order=1, pay=3)}))
    assert set(found) == {"balance_label", "rare_label", "unseen_label_test", "untested_label"}
    balance = found["balance_label"]
    assert balance.value == 10.0
    assert balance.sentence == "3 labels in train, from 4 rows (refund) to 40 (search): 10.0 to 1"
    assert balance.chart is not None
    assert balance.chart.series == {"train": (40.0, 10.0, 4.0), "test": (2.0, 1.0, 0.0)}
    assert found["rare_label"].sentence.startswith("1 label has fewer than 5 train rows (refund)")
    assert found["unseen_label_test"].sentence.startswith("1 label of test (pay; 3 in all) is not in train")
    assert found["untested_label"].examples == ({"label": "refund", "train": 4},)


def test_of_very_many_labels_the_ends_are_drawn() -> None:
    found = by_rule(classes({"train": rows(**{f"l{n:03}": 5 + n for n in range(100)})}))
    chart = found["balance_label"].chart
    assert chart is not None
    assert (len(chart.names), chart.names[0], chart.names[-1]) == (40, "l099", "l000")


def test_entity_types_are_counted_by_span() -> None:
    tokens = (("red", "nike", "air"), ("hello", "you", "there"))
    train = TaggingRows(tokens, (("B-colour", "B-brand", "I-brand"), ("O", "O", "O")))
    test = TaggingRows(tokens[:1], (("B-size", "O", "O"),))
    found = by_rule(classes({"train": train, "test": test}))
    assert found["balance_entity_type"].sentence == (
        "2 entity types in train, from 1 entity (colour) to 1 (brand): 1.0 to 1"
    )
    assert found["untagged_texts"].sentence.startswith("1 of the 2 train texts has no entity")
    assert found["unseen_entity_type_test"].value == 1


def test_a_label_left_in_the_text_is_a_leak() -> None:
    labels = ["search", "order", "refund"] * 6
    plain = IntentRows(tuple(f"words {n} of it" for n in range(18)), tuple(labels))
    assert "label_in_text" not in by_rule(classes({"train": plain}))
    leaking = IntentRows(tuple(f"__{label}__ words {n}" for n, label in enumerate(labels)), tuple(labels))
    found = by_rule(classes({"train": leaking}))["label_in_text"]
    assert (found.severity, found.value) == ("warning", 3)
    assert {example["word"] for example in found.examples} == {"__search__", "__order__", "__refund__"}
