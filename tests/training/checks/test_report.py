"""The report as a whole: short on the terminal, without surprises for any data that can be read."""

import json
import math
from dataclasses import asdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.ranking import RankRequest
from training.checks.report import DataReport, report_on
from training.config import parse
from training.data.splits import IntentRows, RankingRows, Splits, TaggingRows

INTENT = parse({"task": "intent", "model": {"kind": "linear"}}, "intent")
TAGGING = parse({"task": "tagging", "model": {"kind": "transformer"}}, "tagging")
RANKING = parse({"task": "ranking", "model": {"kind": "xgboost"}}, "ranking")

words = st.text("ab é!0", min_size=1, max_size=8).filter(lambda text: bool(text.strip()))
labelled = st.lists(st.tuples(words, st.sampled_from("xyz")), min_size=1, max_size=12)
tokens = st.text("abé!0", min_size=1, max_size=8)
sentences = st.lists(
    st.lists(st.tuples(tokens, st.sampled_from(["O", "B-a", "B-b"])), min_size=1, max_size=4), min_size=1, max_size=8
)
values = st.one_of(st.none(), st.floats(-5, 5, width=32))
documents = st.lists(st.tuples(st.integers(0, 3), values, values), min_size=1, max_size=6)


def checked(report: DataReport) -> DataReport:
    """What must hold of every report."""
    assert len(report.said("the page")) <= 11
    assert all("\n" not in line for line in report.said("the page"))
    assert "<!doctype html>" in report.html()
    assert json.dumps(asdict(report), allow_nan=False)
    rules = [finding.rule for finding in report.findings]
    assert len(set(rules)) == len(rules)
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, reverse=True)
    for finding in report.findings:
        assert not math.isnan(finding.value)
        assert len(finding.examples) <= 10
    return report


@given(labelled, labelled, st.one_of(st.none(), labelled))
@settings(deadline=None, max_examples=25)
def test_any_labelled_texts_can_be_reported_on(
    train: list[tuple[str, str]], valid: list[tuple[str, str]], test: list[tuple[str, str]] | None
) -> None:
    made = [
        None if split is None else IntentRows(*map(tuple, zip(*split, strict=True))) for split in (train, valid, test)
    ]
    checked(report_on(Splits(made[0], made[1], made[2]), INTENT))


@given(sentences, sentences)
@settings(deadline=None, max_examples=25)
def test_any_tagged_texts_can_be_reported_on(
    train: list[list[tuple[str, str]]], valid: list[list[tuple[str, str]]]
) -> None:
    made = [
        TaggingRows(
            tuple(tuple(token for token, _ in sentence) for sentence in split),
            tuple(tuple(tag for _, tag in sentence) for sentence in split),
        )
        for split in (train, valid)
    ]
    checked(report_on(Splits(made[0], made[1], None), TAGGING))


def lists(groups: list[list[tuple[int, float | None, float | None]]]) -> RankingRows:
    requests, labels = [], []
    for group in groups:
        columns = {
            name: np.array([math.nan if row[place] is None else row[place] for row in group], dtype=np.float32)
            for place, name in ((1, "a"), (2, "b"))
        }
        requests.append(RankRequest(tuple(str(place) for place in range(len(group))), features=columns))
        labels.append(np.array([row[0] for row in group], dtype=np.float32))
    return RankingRows(tuple(str(row) for row in range(len(groups))), tuple(requests), tuple(labels), ("a", "b"))


@given(st.lists(documents, min_size=1, max_size=7), st.lists(documents, min_size=1, max_size=3))
@settings(deadline=None, max_examples=12)
def test_any_judged_lists_can_be_reported_on(
    train: list[list[tuple[int, float | None, float | None]]], test: list[list[tuple[int, float | None, float | None]]]
) -> None:
    checked(report_on(Splits(lists(train), lists(test), lists(test)), RANKING))


def test_warnings_come_first_and_the_rest_is_counted() -> None:
    rows = IntentRows(("red shoes", "my order"), ("search", "order"))
    report = checked(report_on(Splits(rows, rows, rows, ("seen by the reader",)), INTENT))
    said = report.said("data/report.html")
    assert said[0] == "note: seen by the reader"
    assert said[1].startswith("warning: 2 of the 2 valid texts (100.0 %) stand in train too")
    assert said[-1].endswith("more, and examples: data/report.html")
    assert report.warnings[0] == "seen by the reader"
