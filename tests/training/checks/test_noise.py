"""Wrong labels, tags and judgements that were put in are found, and clean data are left in peace."""

import numpy as np

from tests.training.checks.shop import ranking_rows, words
from training.checks.judged import judged
from training.checks.judgements import judgement_noise, judgement_suspects
from training.checks.label_noise import MAX_ROWS, label_noise, label_suspects, sampled
from training.checks.tag_noise import tag_noise, tag_suspects
from training.data.splits import IntentRows, TaggingRows

N = 400


def intents() -> tuple[list[str], list[str]]:
    generator = np.random.default_rng(0)
    verbs = {"search": ("find", "show me", "i want"), "order": ("where is", "track", "when comes")}
    things = {
        "search": ("red shoes", "a blue shirt", "green socks"),
        "order": ("my order", "the parcel", "my delivery"),
    }
    labels = [("search", "order")[i % 2] for i in range(N)]
    texts = [
        f"{generator.choice(verbs[label])} {generator.choice(things[label])} {i}" for i, label in enumerate(labels)
    ]
    return texts, labels


def test_wrong_labels_are_found_and_no_others() -> None:
    texts, labels = intents()
    wrong = [7, 100, 233, 390]
    given = [
        ("order" if label == "search" else "search") if row in wrong else label for row, label in enumerate(labels)
    ]
    names, found = label_suspects(texts, given, seed=1)
    assert sorted(found.rows.tolist()) == wrong
    assert [names[place] for place in found.classes] == [labels[row] for row in found.rows]


def test_a_finding_names_text_row_and_labels() -> None:
    texts, labels = intents()
    labels[10] = "order"
    (finding,) = label_noise(IntentRows(tuple(texts), tuple(labels)), seed=1)
    assert (finding.rule, finding.severity, finding.value) == ("label_noise", "note", 1)
    example = finding.examples[0]
    assert (example["text"], example["row"], example["label"], example["rather"]) == (texts[10], 11, "order", "search")


def test_clean_labels_and_a_single_label_give_nothing() -> None:
    texts, labels = intents()
    assert label_noise(IntentRows(tuple(texts), tuple(labels)), seed=1) == []
    assert label_noise(IntentRows(tuple(texts), ("search",) * N), seed=1) == []
    assert label_noise(IntentRows(("a",), ("search",)), seed=1) == []


def test_of_many_rows_a_random_part_is_looked_at() -> None:
    rows = sampled(50_000, MAX_ROWS, 3)
    assert len(rows) == MAX_ROWS
    assert (np.diff(rows) > 0).all()
    assert sampled(5, MAX_ROWS, 3).tolist() == [0, 1, 2, 3, 4]


def tagged() -> TaggingRows:
    generator = np.random.default_rng(2)
    tokens, tags = [], []
    for _ in range(N):
        colour, thing = str(generator.choice(["red", "blue", "green"])), str(generator.choice(["shoes", "shirt"]))
        tokens.append(("i", "want", colour, thing, "please"))
        tags.append(("O", "O", "B-colour", "B-product", "O"))
    return TaggingRows(tuple(tokens), tuple(tags))


def test_wrong_tags_are_found_and_no_others() -> None:
    rows = tagged()
    tags = [list(sentence) for sentence in rows.tags]
    tags[5][2], tags[50][3], tags[77][0] = "B-product", "O", "B-colour"
    noisy = TaggingRows(rows.tokens, tuple(map(tuple, tags)))
    names, places, found = tag_suspects(noisy, seed=1)
    assert sorted(places[word] for word in found.rows) == [(5, 2), (50, 3), (77, 0)]
    assert {places[word]: names[place] for word, place in zip(found.rows, found.classes, strict=True)} == {
        (5, 2): "B-colour", (50, 3): "B-product", (77, 0): "O"
    }  # fmt: skip
    assert tag_noise(rows, seed=1) == []
    (finding,) = tag_noise(noisy, seed=1)
    assert {(example["row"], example["word"]) for example in finding.examples} == {
        (6, rows.tokens[5][2]), (51, rows.tokens[50][3]), (78, "i")
    }  # fmt: skip


def test_wrong_judgements_are_found() -> None:
    rows = ranking_rows(n_lists=60, seed=4)
    for row in (3, 20, 41):
        place = int(np.argmin(rows.labels[row]))
        rows.labels[row][place] = 4 if rows.labels[row][place] == 0 else 0
    data = judged(rows, rows.feature_names, 1)
    documents, _ = judgement_suspects(data, 1)
    found = {int(data.lists[document]) for document in documents[:3]}
    assert found == {3, 20, 41}
    (finding,) = judgement_noise(data, rows, 1)
    assert finding.examples[0]["query"] in words(rows, (3, 20, 41))
