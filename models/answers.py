"""What users get, in the shapes of the HTTP contract; `to_json` gives plain dictionaries and lists."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True, unsafe_hash=True)
class Alternative:
    """Another label and its confidence. Nobody changes one; frozen, it would take three times as long to make."""

    label: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Intent:
    """What a query wants; `label` is `oos` exactly where `in_scope` is False.

    confidence: the chance that `label` is right. alternatives: the next labels in falling order; of a query that is out
    of scope they begin with what it would have been.
    labels: every label that applies, in falling order, of a model that may give several; empty for one that gives one.
    """

    label: str
    confidence: float
    in_scope: bool
    alternatives: tuple[Alternative, ...]
    labels: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Entity:
    """A span of the user's own text: `text == query[start:end]`, in characters."""

    type: str
    text: str
    start: int
    end: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Reading:
    """What one model read out of a text; None where it does not answer that question."""

    intent: Intent | None = None
    entities: tuple[Entity, ...] | None = None


@dataclass(frozen=True, slots=True)
class Understanding:
    """The answer of POST /v1/understand for one query; `models` maps family to NAME/VERSION."""

    query: str
    intent: Intent | None
    entities: tuple[Entity, ...]
    models: dict[str, str]


@dataclass(slots=True, unsafe_hash=True)
class Ranked:
    """A candidate in its place; `rank` counts from 1. Nobody changes one; frozen, it would take three times as long."""

    id: str
    score: float
    rank: int


@dataclass(frozen=True, slots=True)
class Phase:
    """One pass over the candidates: how many came in, went on and were scored, and how long it took (milliseconds)."""

    model: str
    n_in: int
    n_out: int
    ms: float
    n_scored: int


@dataclass(frozen=True, slots=True)
class Contributions:
    """What each feature added to a score (`models.shap`), candidate -> feature -> part: score = base + their sum."""

    base: float
    candidates: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The answer of POST /v1/rank; `reason` says why where `degraded`.

    A candidate's score is that of the last phase that scored it.
    """

    ranking: tuple[Ranked, ...]
    models: tuple[str, ...]
    phases: tuple[Phase, ...]
    degraded: bool = False
    reason: str | None = None
    explanations: dict[str, dict[str, float | None]] = field(default_factory=dict)
    contributions: Contributions | None = None


def to_json(answer: Understanding | Ranking) -> dict[str, Any]:
    """Give an answer as the HTTP contract writes it."""
    fields = asdict(answer)
    if isinstance(answer, Ranking):
        fields["phases"] = [
            {"model": p.model, "in": p.n_in, "out": p.n_out, "ms": p.ms, "scored": p.n_scored} for p in answer.phases
        ]
        if answer.reason is None:
            del fields["reason"]
        if not answer.explanations:
            del fields["explanations"]
        if answer.contributions is None:
            del fields["contributions"]
    return fields
