"""Features of (query, title), computed by the same function in training and in the gateway.

Shapes: D titles of a list, E dimensions of a vector.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.embedding import SentenceEncoder
from models.errors import BundleError
from models.lexical import LEXICAL_NAMES, Corpus, Reading, lexical_features, read
from models.manifest import PairFeatures

STATISTICS = "features.json"
ENCODER = "encoder.onnx"
TOKENIZER = "tokenizer.json"


COSINE, AGREEMENT = "cosine", "list_agreement"
_AGREEMENT_SLOPE = 10.0


@dataclass(frozen=True, slots=True)
class _Text:
    reading: Reading
    vector: NDArray[np.float32] | None


class PairFeaturizer:
    """Lexical and embedding features of a query and its candidates' titles.

    A title beyond `max_tokens` is cut for the embedding only; every word of it counts in the lexical features.
    A pair's features depend on nothing but the pair, `list_agreement` alone excepted: it compares a title with the
    others of its list, weighted by how well they fit the query. A later phase, whose list has been cut, computes it
    over the titles that are left; those cut off had the smallest weights.
    What is computed of a text is kept for the `n_cached` texts used last (about 3 kB each), so a catalogue's titles
    cost once. `transform` may be called from several threads at once.
    """

    names: tuple[str, ...] = (COSINE, AGREEMENT, *LEXICAL_NAMES)
    n_features = len(names)
    rising: frozenset[str] = frozenset(names) - {"first_position", "title_words", "query_words"}
    """Features of which more is never worse: a ranker that is held to that learns from few queries."""

    def __init__(self, directory: Path, corpus: Corpus, encoder: SentenceEncoder, *, n_cached: int) -> None:
        self._directory = directory
        self._corpus = corpus
        self._encoder = encoder
        self._n_cached = n_cached
        self._cache: OrderedDict[str, _Text] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, directory: Path, settings: PairFeatures, *, n_threads: int = 1, n_cached: int = 50_000
    ) -> PairFeaturizer:
        """Open what `save` wrote; BundleError where a file cannot be read.

        n_threads: cores one embedding may use (0: all). n_cached: texts kept.
        """
        encoder = SentenceEncoder(directory / ENCODER, directory / TOKENIZER, settings.max_tokens, n_threads=n_threads)
        return cls(directory, _read_corpus(directory / STATISTICS), encoder, n_cached=n_cached)

    def save(self, directory: Path) -> None:
        """Write `features.json`, `encoder.onnx` and `tokenizer.json`."""
        for name in (STATISTICS, ENCODER, TOKENIZER):
            shutil.copyfile(self._directory / name, directory / name)

    def transform(self, query: str, titles: Sequence[str]) -> NDArray[np.float32]:
        """Features [D, n_features] of `query` and each of D `titles`, NaN where undefined (a text without words)."""
        asked, texts = self._text(query), [self._text(title) for title in titles]
        features_DF = np.empty((len(texts), self.n_features), dtype=np.float32)
        features_DF[:, 0] = _cosines(asked, texts)
        features_DF[:, 1] = _agreements(texts, features_DF[:, 0])
        features_DF[:, 2:] = lexical_features(asked.reading, [text.reading for text in texts], self._corpus)
        return features_DF

    def prepare(self, texts: Iterable[str]) -> None:
        """Compute and keep what `transform` needs of `texts`, about 2 ms each: a catalogue's titles, beforehand."""
        for text in texts:
            self._text(text)

    def borrow(self, other: PairFeaturizer) -> None:
        """Take over what another one of the same encoder has computed of texts; the statistics of titles stay apart."""
        with other._lock:
            known = dict(other._cache)
        with self._lock:
            self._cache.update(known)

    def _text(self, text: str) -> _Text:
        with self._lock:
            known = self._cache.get(text)
            if known is not None:
                self._cache.move_to_end(text)
                return known
        # Outside the lock: two threads may embed the same text, and come to the same vector.
        new = _Text(read(text), self._encoder.embed(text))
        with self._lock:
            self._cache[text] = new
            while len(self._cache) > self._n_cached:
                self._cache.popitem(last=False)
        return new


def write_corpus(path: Path, corpus: Corpus) -> None:
    """Write the statistics as parallel lists."""
    path.write_text(
        json.dumps(
            {
                "n_titles": corpus.n_titles,
                "mean_words": corpus.mean_words,
                "terms": list(corpus.counts),
                "counts": list(corpus.counts.values()),
            },
            ensure_ascii=False,
            separators=(",", ":"),
        ),
        encoding="utf-8",
    )


def _read_corpus(path: Path) -> Corpus:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        counts = dict(zip(stored["terms"], stored["counts"], strict=True))
        return Corpus(int(stored["n_titles"]), float(stored["mean_words"]), counts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} must hold a featurizer's statistics, got: {error!r}; train again") from error


def _cosines(query: _Text, titles: Sequence[_Text]) -> NDArray[np.float32]:
    cosines_D = np.full(len(titles), np.nan, dtype=np.float32)
    if query.vector is None:
        return cosines_D
    known = [place for place, title in enumerate(titles) if title.vector is not None]
    if known:
        vectors_DE = np.stack([vector_E for title in titles if (vector_E := title.vector) is not None])
        # A sum a row, in one fixed order: a matrix product's rounding depends on how many rows it has.
        cosines_D[known] = (vectors_DE * query.vector).sum(axis=1)
    return cosines_D


def _agreements(titles: Sequence[_Text], cosines_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean cosine of each title with the others, a title j of weight exp(_AGREEMENT_SLOPE cosine(query, j)).

    What the best titles have in common says more of the query than its few words do (pseudo-relevance feedback,
    Rocchio 1971); a title is left out of its own mean. NaN where a title has no other one, or there is no vector.
    """
    agreements_D = np.full(len(titles), np.nan, dtype=np.float32)
    known_D = ~np.isnan(cosines_D)
    if known_D.sum() < 2:
        return agreements_D
    vectors_DE = np.stack([vector_E for title in titles if (vector_E := title.vector) is not None]).astype(np.float64)
    slopes_D = _AGREEMENT_SLOPE * cosines_D[known_D].astype(np.float64)
    weights_D = np.exp(slopes_D - slopes_D.max())
    # Sums by numpy itself: a library's matrix product would round otherwise on another machine.
    total_E = (weights_D[:, None] * vectors_DE).sum(axis=0)
    others_DE = total_E - weights_D[:, None] * vectors_DE
    agreements_D[known_D] = (vectors_DE * others_DE).sum(axis=1) / (weights_D.sum() - weights_D)
    return agreements_D
