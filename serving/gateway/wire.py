"""The shapes of the HTTP contract: what requests and answers look like as JSON, and how bytes become one.

OpenAPI is generated from these same structs.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from models.answers import Ranked, Ranking
from serving.gateway.errors import MalformedError, invalid

_ESCAPED = re.compile(rb"\\.", re.DOTALL)

Number = float | None
"""A feature's value; null is missing."""

TopK = Annotated[int, Meta(ge=1)] | None
Explain = bool | Literal["values"]


class UnderstandRequest(Struct, forbid_unknown_fields=True, frozen=True):
    """One `query`, or several `queries` of which a bad one fails alone."""

    query: str | None = None
    queries: (
        Annotated[list[Any], Meta(extra_json_schema={"items": {"type": "string"}, "examples": [["red nike shoes"]]})]
        | None
    ) = None


class Query(Struct, forbid_unknown_fields=True, frozen=True):
    """The query's text, and features that hold for every candidate."""

    text: str = ""
    features: dict[str, Number] = {}


class Candidate(Struct, forbid_unknown_fields=True, frozen=True):
    """One candidate; a feature that is null or absent is missing. Of a feature that is sent twice the last counts."""

    id: str
    text: str | None = None
    features: dict[str, Number] = {}


class Columns(Struct, forbid_unknown_fields=True, frozen=True):
    """All candidates by column: every list is as long as `ids`, and has a name of its own."""

    ids: list[str]
    texts: list[str | None] | None = None
    features: dict[str, list[Number]] = {}


class RankRequest(Struct, forbid_unknown_fields=True, frozen=True):
    """A query and its candidates, by row or by column.

    top_k: how many to answer (null: all). explain: for every answered candidate, what the last phase's model read and
    what each feature added to its score (a model of trees alone can say that); "values": what it read, of any model.
    """

    candidates: list[Candidate] | Columns
    query: Query = Query()
    top_k: TopK = None
    explain: Explain = False


class RankOptions(Struct, forbid_unknown_fields=True, frozen=True):
    """What a request by Arrow says beside its candidates: the same fields, as JSON in the schema's metadata."""

    query: Query = Query()
    top_k: TopK = None
    explain: Explain = False


class ErrorBody(Struct, frozen=True):
    """`field` is the path of the part at fault, null where there is none."""

    code: str
    message: str
    field: str | None


class ErrorAnswer(Struct, frozen=True):
    """What every refusal looks like, whatever its status."""

    error: ErrorBody


class UnderstandAnswers(Struct, frozen=True):
    """One answer a query, in order; an error stands in the place of the query that has one."""

    # Any: a msgspec union may hold one object type alone, though only decoding would need to tell them apart.
    results: Annotated[
        list[Any],
        Meta(
            extra_json_schema={
                "items": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/Understanding"},
                        {"$ref": "#/components/schemas/ErrorAnswer"},
                    ]
                }
            }
        ),
    ]


class PhaseAnswer(Struct, frozen=True, rename={"n_in": "in", "n_out": "out", "n_scored": "scored"}):
    """One pass over the candidates: how many came in, went on and were scored, and its time in milliseconds.

    `scored` is below `in` where the phase ran out of its budget: the others keep the places that they had.
    """

    model: str
    n_in: int
    n_out: int
    ms: float
    n_scored: int


class ContributionsAnswer(Struct, frozen=True):
    """Exact SHAP values: a candidate's score is `base` and the sum of its features' (candidate -> feature -> value)."""

    base: float
    candidates: dict[str, dict[str, float]]


class RankAnswer(Struct, frozen=True):
    """Candidates in order. `degraded`: a later phase was skipped or scored some of them alone, `reason` says why.

    A candidate's score is that of the last phase that scored it, and compares with those of the same phase.

    explanations: candidate -> feature -> the value that the model read, null when missing. contributions: what each of
    those values added to the score.
    """

    ranking: tuple[Ranked, ...]
    models: tuple[str, ...]
    phases: list[PhaseAnswer]
    degraded: bool
    reason: str | UnsetType = UNSET
    explanations: dict[str, dict[str, Number]] | UnsetType = UNSET
    contributions: ContributionsAnswer | UnsetType = UNSET


class ModelAnswer(Struct, frozen=True):
    """A served model: `ref` is NAME/VERSION, `answers` what it is asked for."""

    ref: str
    family: str
    digest: str
    variant: str
    answers: tuple[str, ...]


class ModelsAnswer(Struct, frozen=True):
    """Every served model."""

    models: list[ModelAnswer]


class StatusAnswer(Struct, frozen=True):
    """`ok`, `ready`."""

    status: str


S = TypeVar("S", bound=Struct)

understand_decoder = msgspec.json.Decoder(UnderstandRequest)
rank_decoder = msgspec.json.Decoder(RankRequest)
options_decoder = msgspec.json.Decoder(RankOptions)
encode = msgspec.json.Encoder().encode


def decode(body: bytes, decoder: msgspec.json.Decoder[S]) -> S:
    """Read a request; MalformedError for what is not JSON, InputError with the field's path for a wrong shape.

    JSON has no NaN, but Python's own encoder writes it; here it is null: missing.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(error, body) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if (plain := without_nan(body)) != body:
            return decode(plain, decoder)
        raise MalformedError(
            f"a body must be JSON in UTF-8, got {len(body)} bytes with: {error}; correct it"
        ) from error


def rank_answer(answer: Ranking) -> RankAnswer:
    """Give a ranking as the contract writes it, equal to `models.answers.to_json` at a tenth of its cost."""
    return RankAnswer(
        ranking=answer.ranking,
        models=answer.models,
        phases=[PhaseAnswer(one.model, one.n_in, one.n_out, one.ms, one.n_scored) for one in answer.phases],
        degraded=answer.degraded,
        reason=UNSET if answer.reason is None else answer.reason,
        explanations=answer.explanations or UNSET,
        contributions=UNSET
        if (found := answer.contributions) is None
        else ContributionsAnswer(found.base, found.candidates),
    )


def without_nan(body: bytes) -> bytes:
    """Write null for every NaN of a body that is not within a text: one that an even number of quotes comes before."""
    first, *others = body.split(b"NaN")
    parts, before, is_text = [first], first, False
    for part in others:
        quoted = _ESCAPED.sub(b"", before) if b"\\" in before else before
        is_text ^= quoted.count(b'"') % 2 == 1
        parts += [b"NaN" if is_text else b"null", part]
        before = part
    return b"".join(parts)
