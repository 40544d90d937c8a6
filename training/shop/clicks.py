"""The demo shop's click log: what customers saw, in which order, and what they clicked, biased by position.

Shapes: D candidates of a query, S sessions, P positions shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.shop.catalogue import TODAY
from training.shop.queries import Query
from training.shop.relevance import Floats, Shelf, Truth, attractiveness, matches

LOG_DAYS = 60
N_SHOWN = 10
_FEWEST_CANDIDATES, _MOST_CANDIDATES = 12, 40
_CTR_PRIOR_VIEWS = 10.0


@dataclass(frozen=True, slots=True)
class Candidates:
    """One query and the products that retrieval found: their places in the catalogue [D], and what is true of them.

    shown_score [D] is what the shop sorted by so far; attraction [D] is hidden.
    """

    query_id: str
    query: Query
    places: NDArray[np.int64]
    matched: dict[str, Floats]
    shown_score: Floats
    attraction: Floats


@dataclass(frozen=True, slots=True)
class Session:
    """One result page: places in the catalogue as shown, and positions (from 1) clicked and ordered."""

    at: datetime
    query_id: str
    query: str
    shown: NDArray[np.int64]
    clicks: tuple[int, ...]
    orders: tuple[int, ...]

    def to_json(self, session_id: str, shelf: Shelf) -> dict[str, Any]:
        """The session as `clicks.jsonl` shows it."""
        return {
            "session_id": session_id,
            "timestamp": self.at.isoformat(),
            "query_id": self.query_id,
            "query": self.query,
            "shown": [shelf.products[place].id for place in self.shown],
            "clicks": list(self.clicks),
            "orders": list(self.orders),
        }


def retrieve(rng: np.random.Generator, shelf: Shelf, query_id: str, query: Query, truth: Truth) -> Candidates:
    """Find candidates as a first phase does: the better they match, the likelier, in no order that tells anything."""
    matched = matches(shelf, query.wish)
    overlap = np.sum([np.nan_to_num(match) for match in matched.values()], axis=0) + 2 * np.nan_to_num(
        matched["type_match"]
    )
    found = np.argsort(-(overlap + rng.normal(0, 0.8, len(overlap))), kind="stable")
    places = rng.permutation(found[: int(rng.integers(_FEWEST_CANDIDATES, _MOST_CANDIDATES + 1))])
    shown_score = overlap + 0.4 * np.log1p(shelf.popularity)
    return Candidates(
        query_id,
        query,
        places,
        {name: match[places] for name, match in matched.items()},
        shown_score[places],
        attractiveness(shelf, matched, truth)[places],
    )


def make_sessions(
    rng: np.random.Generator, shelf: Shelf, candidates: Sequence[Candidates], n_sessions: int, truth: Truth
) -> list[Session]:
    """Draw sessions in order of time; few queries are frequent, most are rare (Zipf)."""
    frequency = 1 / np.arange(1, len(candidates) + 1) ** 0.8
    counts = rng.multinomial(n_sessions, rng.permutation(frequency / frequency.sum()))
    sessions = [
        session
        for found, count in zip(candidates, counts.tolist(), strict=True)
        for session in _sessions_of(rng, shelf, found, count, truth)
    ]
    return sorted(sessions, key=lambda session: session.at)


def _sessions_of(
    rng: np.random.Generator, shelf: Shelf, found: Candidates, n_sessions: int, truth: Truth
) -> list[Session]:
    """Sessions of one query; the shop's order varies a little, and products newer than the log were never shown."""
    old = np.flatnonzero(shelf.age_days[found.places] > LOG_DAYS)
    scores_SD = found.shown_score[old] + rng.normal(0, 0.5, (n_sessions, len(old)))
    shown_SP = old[np.argsort(-scores_SD, axis=1, kind="stable")[:, :N_SHOWN]]
    attraction_SP = found.attraction[shown_SP]
    examination_P = np.arange(1, shown_SP.shape[1] + 1) ** -truth.eta
    p_click_SP = examination_P * (truth.click_noise + (1 - truth.click_noise) * attraction_SP)
    clicked_SP = rng.random(shown_SP.shape) < p_click_SP
    ordered_SP = clicked_SP & (rng.random(shown_SP.shape) < truth.order_rate * attraction_SP)
    seconds_S = rng.integers(LOG_DAYS * 24 * 3600, size=n_sessions)
    start = datetime.combine(TODAY, time(), UTC) - timedelta(days=LOG_DAYS)
    return [
        Session(
            start + timedelta(seconds=seconds),
            found.query_id,
            found.query.text,
            found.places[shown],
            tuple((np.flatnonzero(clicked) + 1).tolist()),
            tuple((np.flatnonzero(ordered) + 1).tolist()),
        )
        for seconds, shown, clicked, ordered in zip(seconds_S.tolist(), shown_SP, clicked_SP, ordered_SP, strict=True)
    ]


def smoothed_ctr(sessions: Sequence[Session], n_products: int) -> Floats:
    """Clicks per view of each product in any query [N]: (clicks + prior x 10) / (views + 10); NaN if never shown."""
    views = np.zeros(n_products)
    clicks = np.zeros(n_products)
    for session in sessions:
        views[session.shown] += 1
        clicks[session.shown[np.array(session.clicks, dtype=np.int64) - 1]] += 1
    prior = clicks.sum() / max(views.sum(), 1.0)
    ctr = (clicks + prior * _CTR_PRIOR_VIEWS) / (views + _CTR_PRIOR_VIEWS)
    return np.where(views > 0, ctr, np.nan)
