"""CoNLL: tagged sentences, a token a line with its tag in the last column, a blank line after each sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from training.data.files import Source, read_source, refuse_bad_rows
from training.data.labels import tagging_problem
from training.data.splits import Problems, TaggingRows

_COMMENT = re.compile(r"#\s+(?P<key>[\w.-]+)\s*[=:]\s*(?P<value>.*)")
_LABEL_KEYS = frozenset({"label", "intent"})
_DOCUMENT = "-DOCSTART-"


@dataclass(slots=True)
class _Sentence:
    """A sentence as it stands in the file; `problem` is the first that was seen while reading it."""

    line: int
    tokens: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    label: str | None = None
    problem: str | None = None


def read_tagging_conll(path: Path) -> TaggingRows:
    """Read sentences of token and tag, in columns separated by tabs or else by blanks; columns between are not read.

    A line `# label = X` (or `# intent: X`) before a sentence gives its intent, in every sentence or in none. Other
    comments (`# key = value`) and `-DOCSTART-` lines hold nothing. DataError names bad sentences by their first line.
    """
    source = read_source(path)
    problems = Problems(source.file)
    kept: list[_Sentence] = []
    has_labels: bool | None = None
    for sentence in _sentences(source):
        if has_labels is None:
            has_labels = sentence.label is not None
        problem = sentence.problem or tagging_problem(sentence.tokens, sentence.tags)
        if problem is None and has_labels != (sentence.label is not None):
            before = "have one" if has_labels else "have none"
            problem = f"# label must be in every sentence or in none, the sentences before {before}"
        if problem:
            problems.add(sentence.line, problem)
        else:
            kept.append(sentence)
    refuse_bad_rows(problems, len(kept))
    return TaggingRows(
        tuple(tuple(sentence.tokens) for sentence in kept),
        tuple(tuple(sentence.tags) for sentence in kept),
        tuple(sentence.label or "" for sentence in kept) if has_labels else None,
        source.file,
        source.sha256,
    )


def _sentences(source: Source) -> Iterator[_Sentence]:
    sentence = _Sentence(1)
    for line, text in enumerate((*source.lines, ""), start=1):
        if not text.strip():
            if sentence.tokens or sentence.label is not None or sentence.problem:
                yield sentence
            sentence = _Sentence(line + 1)
        elif not sentence.tokens and (comment := _COMMENT.fullmatch(text.rstrip())):
            if comment["key"].lower() in _LABEL_KEYS:
                sentence.label = comment["value"]
                sentence.problem = sentence.problem or (None if comment["value"] else "# label must not be blank")
        else:
            columns = text.split("\t") if "\t" in text else text.split()
            if columns[0] == _DOCUMENT:
                continue
            if len(columns) < 2 and sentence.problem is None:
                sentence.line, sentence.problem = line, f"a line must have a token and a tag, got {text!r}"
            sentence.tokens.append(columns[0])
            sentence.tags.append(columns[-1].strip())
