"""JSON Lines: labelled texts and tagged sentences, one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from models.intent import joined_labels
from training.data.files import Source, read_source, refuse_bad_rows
from training.data.labels import labels_problem, tagging_problem, text_problem
from training.data.splits import IntentRows, Problems, TaggingRows


def read_intent_jsonl(path: Path) -> IntentRows:
    """Read lines {"text", "label"}, or {"text", "labels": [...]} in all of them; DataError names the bad rows.

    An empty list of labels is a text out of scope. Other keys and blank lines hold nothing.
    """
    source = read_source(path)
    problems = Problems(source.file)
    texts: list[str] = []
    label_sets: list[tuple[str, ...]] = []
    has_lists: bool | None = None
    for line, row in objects(source, (), problems):
        has_lists = "labels" in row if has_lists is None else has_lists
        key = "labels" if has_lists else "label"
        if missing := [name for name in ("text", key) if name not in row]:
            problems.add(line, f"a row must have {' and '.join(missing)}, got the keys {', '.join(row) or 'none'}")
            continue
        problem = text_problem("text", row["text"])
        problem = problem or (labels_problem(row[key]) if has_lists else text_problem("label", row[key]))
        if problem:
            problems.add(line, problem)
        else:
            texts.append(row["text"])
            label_sets.append(tuple(row[key]) if has_lists else (row[key],))
    refuse_bad_rows(problems, len(texts))
    if not has_lists:
        return IntentRows(tuple(texts), tuple(label for (label,) in label_sets), source.file, source.sha256)
    joined = tuple(map(joined_labels, label_sets))
    return IntentRows(tuple(texts), joined, source.file, source.sha256, tuple(label_sets))


def read_tagging_jsonl(path: Path) -> TaggingRows:
    """Read lines {"tokens", "tags", "label"?}; `label` in all rows or in none. Otherwise as `read_intent_jsonl`."""
    source = read_source(path)
    problems = Problems(source.file)
    tokens: list[tuple[str, ...]] = []
    tags: list[tuple[str, ...]] = []
    labels: list[str] = []
    has_labels: bool | None = None
    for line, row in objects(source, ("tokens", "tags"), problems):
        if has_labels is None:
            has_labels = "label" in row
        problem = tagging_problem(row["tokens"], row["tags"])
        if problem is None and has_labels != ("label" in row):
            problem = f"label must be in every row or in none, the rows before have {'one' if has_labels else 'none'}"
        if problem is None and has_labels:
            problem = text_problem("label", row["label"])
        if problem:
            problems.add(line, problem)
            continue
        tokens.append(tuple(row["tokens"]))
        tags.append(tuple(row["tags"]))
        if has_labels:
            labels.append(row["label"])
    refuse_bad_rows(problems, len(tokens))
    return TaggingRows(tuple(tokens), tuple(tags), tuple(labels) if has_labels else None, source.file, source.sha256)


def objects(source: Source, keys: Sequence[str], problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Give line number and object of every line that holds an object with `keys`; other lines go to `problems`.

    Blank lines are passed over: JSON Lines files may end in some.
    """
    for line, text in enumerate(source.lines, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            problems.add(line, f"a row must be one JSON object, got {_shorten(text)} ({error})")
            continue
        if not isinstance(row, dict):
            problems.add(line, f"a row must be one JSON object, got {_shorten(text)}")
        elif missing := [key for key in keys if key not in row]:
            problems.add(line, f"a row must have {' and '.join(missing)}, got the keys {', '.join(row) or 'none'}")
        else:
            yield line, row


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key occurs twice")
    return row


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")
