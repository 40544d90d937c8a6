"""The rules that texts, labels and tags must keep whatever file they come from, and labels that train never saw.

A check gives the rule that is broken and the value that breaks it, or None.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from models.errors import DataError
from models.manifest import OOS_LABEL

_MIN_ROWS_TO_IMPLY = 10


def text_problem(name: str, text: object) -> str | None:
    """Check a text or a label: a string with something to see, in whole Unicode characters."""
    if not isinstance(text, str):
        return f"{name} must be text, got {text!r}"
    if not text.strip():
        return f"{name} must not be blank, got {text!r}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{name} must be whole Unicode characters, got a lone surrogate at position {error.start}"
    return None


def labels_problem(labels: object) -> str | None:
    """Check a text's list of labels: each one a label, none twice; empty where the text is out of scope."""
    if not isinstance(labels, list):
        return f"labels must be a list, got {labels!r}"
    for label in labels:
        if problem := text_problem("a label", label):
            return problem
        if label == OOS_LABEL:
            return f"labels of a text that is out of scope must be an empty list, got {OOS_LABEL!r} among them"
    if len(set(labels)) < len(labels):
        return f"labels must hold each label once, got {labels!r}"
    return None


def tagging_problem(tokens: object, tags: object) -> str | None:
    """Check a tagged sentence: tokens without whitespace, as many tags, and `I-x` only after `B-x` or `I-x`."""
    if not isinstance(tokens, list) or not isinstance(tags, list):
        return f"tokens and tags must be lists, got {type(tokens).__name__} and {type(tags).__name__}"
    if not tokens:
        return "tokens must hold at least one token, got none"
    for token in tokens:
        if problem := text_problem("a token", token):
            return problem
        if token.split() != [token]:
            return f"a token must not hold whitespace, got {token!r}"
    if len(tokens) != len(tags):
        return f"tokens and tags must be equally many, got {len(tokens)} tokens and {len(tags)} tags"
    return _bio_problem(tags)


def known_labels(labels: Iterable[str], file: str) -> tuple[str, ...]:
    """Give the different labels of train in alphabetical order; DataError where there is only one."""
    known = tuple(sorted(set(labels)))
    if len(known) < 2:
        raise DataError(f"{file} must have rows of at least two labels, all of them are {known[0]!r}")
    return known


def implied_labels(label_sets: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """For each label the others that stand in every one of its rows: a product type's department, and what is above it.

    A label that is always with another, and the other always with it, implies nothing: neither is above. Nor does one
    of fewer than 10 rows, which may be with another by chance.
    """
    sets_of: dict[str, list[set[str]]] = {}
    for labels in label_sets:
        for label in labels:
            sets_of.setdefault(label, []).append(set(labels))
    found = {}
    for label, sets in sorted(sets_of.items()):
        above = sorted(one for one in set.intersection(*sets) if len(sets_of[one]) > len(sets))
        if above and len(sets) >= _MIN_ROWS_TO_IMPLY:
            found[label] = tuple(above)
    return found


def known_tags(tags: Iterable[Sequence[str]], file: str) -> tuple[str, ...]:
    """Give `O`, then the other tags of train in alphabetical order; DataError where there are no others."""
    others = sorted({tag for sentence in tags for tag in sentence} - {"O"})
    if not others:
        raise DataError(f"{file} must tag at least one word, all tags are O")
    return ("O", *others)


def unknown_note(what: str, train: Iterable[str], split: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """Count, for each file of `split`, the values that train does not have; one sentence a file that has any.

    what: singular noun of a value ("label", "tag"). split: file name -> one value a row.
    """
    known = set(train)
    notes = []
    for file, values in split.items():
        unknown = [value for value in values if value not in known]
        if unknown:
            notes.append(
                f"{len(unknown)} rows of {file} have a {what} that train does not have ({_some(set(unknown))}): "
                "they count as errors"
            )
    return tuple(notes)


def _bio_problem(tags: Sequence[object]) -> str | None:
    before = "O"
    for number, tag in enumerate(tags, start=1):
        if not isinstance(tag, str) or not (tag == "O" or (tag[:2] in {"B-", "I-"} and tag[2:].strip())):
            return f"a tag must be O, B-TYPE or I-TYPE, got {tag!r} as tag {number}"
        if tag.startswith("I-") and before not in {tag, f"B-{tag[2:]}"}:
            return f"{tag} must follow B-{tag[2:]} or {tag}, tag {number} follows {before}"
        before = tag
    return None


def _some(values: Collection[str]) -> str:
    first = sorted(values)[:3]
    return ", ".join(first) + (f" and {len(values) - len(first)} more" if len(values) > len(first) else "")
