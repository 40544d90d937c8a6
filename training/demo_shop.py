"""A demo shop from a seed: catalogue, labelled queries, a biased click log and judged ranking lists, as plain files.

`training.shop` holds the words and phrases, and what draws products, queries, clicks and lists from them. This module
puts the files together and writes them, all or none.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from models.errors import DataError, InputError, WorkspaceError
from training.shop.catalogue import Product, make_catalogue
from training.shop.clicks import Candidates, Session, make_sessions, retrieve, smoothed_ctr
from training.shop.queries import Query, SplitName, make_queries, make_searches
from training.shop.ranking import Titles, judge, ranking_features
from training.shop.relevance import Shelf, Truth

VERSION = 2
"""Changes whenever the same seed and sizes give other files."""

_SHOP = "shop.json"
_SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")
_SPOILT_PART = 0.7
_STREAMS = ("catalogue", "train", "valid", "test", "searches", "retrieval", "sessions", "judges")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much to generate; every number is at least 1, and products cover each of the product types."""

    products: int = 5840
    train_queries: int = 3600
    valid_queries: int = 600
    test_queries: int = 1200
    train_lists: int = 360
    valid_lists: int = 80
    test_lists: int = 140
    sessions: int = 20_000


@dataclass(frozen=True, slots=True)
class DemoShop:
    """A shop on disk; `rankyard train` takes `intent`, `queries`, `ranking`, `pairs` and `impressions`."""

    directory: Path
    seed: int
    sizes: Sizes

    @property
    def catalogue(self) -> Path:
        """One product a line."""
        return self.directory / "catalogue.jsonl"

    @property
    def clicks(self) -> Path:
        """One session a line, in order of time."""
        return self.directory / "clicks.jsonl"

    @property
    def queries(self) -> Path:
        """Tokens, BIO tags and intent: task `tagging`, joint."""
        return self.directory / "queries"

    @property
    def intent(self) -> Path:
        """The same rows as `queries`, in the same order, as text and label: task `intent`."""
        return self.directory / "intent"

    @property
    def ranking(self) -> Path:
        """Judged lists with numeric features: task `ranking`."""
        return self.directory / "ranking"

    @property
    def impressions(self) -> Path:
        """The click log by impression, with the features of `ranking`, as train; judged lists as valid and test."""
        return self.directory / "impressions"

    @property
    def pairs(self) -> Path:
        """The same lists as `ranking`, as texts of query and title."""
        return self.directory / "pairs"

    def counts(self) -> dict[str, int]:
        """What there is of each thing."""
        sizes = self.sizes
        return {
            "products": sizes.products,
            "labelled_queries": sizes.train_queries + sizes.valid_queries + sizes.test_queries,
            "ranking_lists": sizes.train_lists + sizes.valid_lists + sizes.test_lists,
            "sessions": sizes.sessions,
        }


def generate(directory: Path, *, seed: int = 7, sizes: Sizes | None = None) -> DemoShop:
    """Write a demo shop; the same seed and sizes give the same bytes. An older demo shop in `directory` is replaced.

    Raises InputError where `directory` holds anything else, WorkspaceError where it cannot be written.
    """
    shop = DemoShop(directory, seed, sizes or Sizes())
    _check(shop)
    stream = {name: np.random.default_rng([seed, number]) for number, name in enumerate(_STREAMS)}
    catalogue = make_catalogue(stream["catalogue"], shop.sizes.products)
    with _replacing(directory) as draft:
        _write_lines(draft / shop.catalogue.name, (product.to_json() for product in catalogue))
        _write_queries(draft, catalogue, shop.sizes, stream)
        _write_behaviour(draft, catalogue, shop.sizes, stream)
        about = {"version": VERSION, "seed": seed, "sizes": asdict(shop.sizes), "truth": asdict(Truth())}
        (draft / _SHOP).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return shop


def spoil(directory_in: Path, directory_out: Path, seed: int = 7) -> Path:
    """Copy `intent/` or `queries/` with the labels of most training rows shuffled among themselves; gives the copy.

    Valid and test stay as they are: a model trained on the copy is bad, and any honest evaluation shows it.
    """
    train = directory_in / "train.jsonl"
    if not train.is_file():
        raise DataError(f"{directory_in} must hold train.jsonl, as a demo shop's intent/ and queries/ do")
    rows = _read_lines(train)
    rng = np.random.default_rng(seed)
    chosen = np.flatnonzero(rng.random(len(rows)) < _SPOILT_PART)
    labels = [rows[i]["label"] for i in rng.permutation(chosen).tolist()]
    for i, label in zip(chosen.tolist(), labels, strict=True):
        rows[i]["label"] = label
    directory_out.mkdir(parents=True, exist_ok=True)
    for split in _SPLITS[1:]:
        shutil.copyfile(directory_in / f"{split}.jsonl", directory_out / f"{split}.jsonl")
    _write_lines(directory_out / "train.jsonl", rows)
    return directory_out


def sample_queries(seed: int = 7) -> list[str]:
    """Three queries to ask a gateway: a search, a question about an order, and one that no shop answers."""
    rng = np.random.default_rng(seed)
    size, order = int(rng.integers(38, 46)), int(rng.integers(10_000, 100_000))
    colour = ("red", "navy blue", "black")[int(rng.integers(3))]
    return [
        f"{colour} velloro running shoes size {size} under 120",
        f"has my parcel {order} left the warehouse yet?",
        "will it be sunny in Oslo tomorrow?",
    ]


def sample_ranking(directory: Path, *, n_candidates: int = 12) -> dict[str, Any]:
    """A body for POST /v1/rank: the first candidates of the first test list of the shop in `directory`."""
    pairs = _read_lines(directory / "pairs" / "test.jsonl")
    first = [pair for pair in pairs if pair["query_id"] == pairs[0]["query_id"]][:n_candidates]
    rows = pq.read_table(directory / "ranking" / "test.parquet").slice(0, len(first)).to_pylist()
    return {
        "query": {"text": first[0]["query"]},
        "candidates": [
            {
                "id": pair["doc_id"],
                "text": pair["title"],
                "features": {name: row[name] for name in row if name not in ("query_id", "doc_id", "label")},
            }
            for pair, row in zip(first, rows, strict=True)
        ],
    }


def _check(shop: DemoShop) -> None:
    for name, number in asdict(shop.sizes).items():
        if number < 1:
            raise InputError(f"a demo shop needs at least 1 of {name}, got {number}", field=name)
    directory = shop.directory
    if directory.exists() and not directory.is_dir():
        raise InputError(f"a demo shop is written to a directory, {directory} is a file; name another place")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / _SHOP).is_file():
        raise InputError(
            f"a demo shop is written to a new directory, {directory} holds other files; name another place"
        )


def _write_queries(
    draft: Path, catalogue: Sequence[Product], sizes: Sizes, stream: dict[str, np.random.Generator]
) -> None:
    seen: set[str] = set()
    for split, n_queries in zip(_SPLITS, (sizes.train_queries, sizes.valid_queries, sizes.test_queries), strict=True):
        queries = make_queries(stream[split], catalogue, split, n_queries, seen)
        _write_lines(draft / "intent" / f"{split}.jsonl", ({"text": q.text, "label": q.label} for q in queries))
        _write_lines(draft / "queries" / f"{split}.jsonl", map(_tagged, queries))


def _tagged(query: Query) -> dict[str, Any]:
    return {"tokens": list(query.tokens), "tags": list(query.tags), "label": query.label}


def _write_behaviour(
    draft: Path, catalogue: Sequence[Product], sizes: Sizes, stream: dict[str, np.random.Generator]
) -> None:
    """The click log, and the ranking lists of the queries in it."""
    shelf, truth = Shelf(catalogue), Truth()
    n_lists = (sizes.train_lists, sizes.valid_lists, sizes.test_lists)
    queries = make_searches(stream["searches"], catalogue, sum(n_lists))
    found = [
        retrieve(stream["retrieval"], shelf, f"q{number:04d}", query, truth)
        for number, query in enumerate(queries, start=1)
    ]
    sessions = make_sessions(stream["sessions"], shelf, found, sizes.sessions, truth)
    _write_lines(
        draft / "clicks.jsonl", (session.to_json(f"s{i:06d}", shelf) for i, session in enumerate(sessions, start=1))
    )
    titles, ctr = Titles(shelf), smoothed_ctr(sessions, len(catalogue))
    begin = 0
    for split, n in zip(_SPLITS, n_lists, strict=True):
        lists = found[begin : begin + n]
        begin += n
        labels = [judge(stream["judges"], candidates, truth) for candidates in lists]
        features = [ranking_features(shelf, titles, ctr, candidates) for candidates in lists]
        _write_ranking(draft / "ranking" / f"{split}.parquet", shelf, lists, labels, features)
        # The click rate comes from these very clicks: a ranker that learned from them would see little else.
        blind = [{name: of_list[name] for name in of_list if name != "ctr"} for of_list in features]
        if split == "train":
            _write_impressions(draft / "impressions" / f"{split}.parquet", shelf, sessions, lists, blind)
        else:
            _write_ranking(draft / "impressions" / f"{split}.parquet", shelf, lists, labels, blind)
        _write_lines(draft / "pairs" / f"{split}.jsonl", _pairs(shelf, lists, labels))


def _write_ranking(
    path: Path,
    shelf: Shelf,
    lists: Sequence[Candidates],
    labels: Sequence[np.ndarray[Any, np.dtype[np.int64]]],
    features: Sequence[dict[str, np.ndarray[Any, np.dtype[np.float32]]]],
) -> None:
    columns: dict[str, Any] = {
        "query_id": [candidates.query_id for candidates in lists for _ in candidates.places],
        "doc_id": [shelf.products[place].id for candidates in lists for place in candidates.places],
        "label": np.concatenate(labels),
    }
    for name in features[0]:
        column = np.concatenate([of_list[name] for of_list in features])
        columns[name] = pa.array(column, mask=np.isnan(column))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def _write_impressions(
    path: Path,
    shelf: Shelf,
    sessions: Sequence[Session],
    lists: Sequence[Candidates],
    features: Sequence[dict[str, np.ndarray[Any, np.dtype[np.float32]]]],
) -> None:
    """Write a row for each product that a session showed, of those whose query is in `lists`."""
    starts = np.cumsum([0, *(len(candidates.places) for candidates in lists)])
    row_of = {
        (candidates.query_id, place): start + number
        for candidates, start in zip(lists, starts.tolist(), strict=False)
        for number, place in enumerate(candidates.places.tolist())
    }
    known = {candidates.query_id for candidates in lists}
    shown = [
        (f"s{number:06d}", session.query_id, place, position, position in session.clicks)
        for number, session in enumerate(sessions, start=1)
        if session.query_id in known
        for position, place in enumerate(session.shown.tolist(), start=1)
    ]
    columns: dict[str, Any] = {
        "session_id": [one[0] for one in shown],
        "query_id": [one[1] for one in shown],
        "doc_id": [shelf.products[one[2]].id for one in shown],
        "position": [one[3] for one in shown],
        "clicked": [int(one[4]) for one in shown],
    }
    rows = np.array([row_of[one[1], one[2]] for one in shown], dtype=np.int64)
    for name in features[0]:
        column = np.concatenate([of_list[name] for of_list in features])[rows]
        columns[name] = pa.array(column, mask=np.isnan(column))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def _pairs(
    shelf: Shelf, lists: Sequence[Candidates], labels: Sequence[np.ndarray[Any, np.dtype[np.int64]]]
) -> Iterator[dict[str, Any]]:
    for candidates, grades in zip(lists, labels, strict=True):
        for place, label in zip(candidates.places.tolist(), grades.tolist(), strict=True):
            product = shelf.products[place]
            yield {
                "query_id": candidates.query_id,
                "query": candidates.query.text,
                "doc_id": product.id,
                "title": product.title,
                "label": label,
            }


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """Give a draft beside `directory` that takes its place when the block ends well, and vanishes otherwise."""
    draft: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        new, old = draft / "new", draft / "old"
        new.mkdir()
        yield new
        if directory.exists():
            directory.rename(old)
        new.rename(directory)
    except OSError as error:
        raise WorkspaceError(
            f"a demo shop must be written below {directory.parent}, got: {error.strerror or error}; name another place"
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
