"""Features of (query, title), computed by the same function in training and in the gateway.

Shapes: D titles of a list, E dimensions of a vector.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.embedding import SentenceEncoder
from models.errors import BundleError
from models.lexical import LEXICAL_NAMES, Corpus, lexical_features, read
from models.manifest import PairFeatures
from models.text_cache import KnownText, TextCache

STATISTICS = "features.json"
ENCODER = "encoder.onnx"
TOKENIZER = "tokenizer.json"


COSINE, AGREEMENT = "cosine", "list_agreement"
_AGREEMENT_SLOPE = 10.0
_MAX_BYTES = 128 * 1024 * 1024


class PairFeaturizer:
    """Lexical and embedding features of a query and its candidates' titles.

    A title beyond `max_tokens` is cut for the embedding only; every word of it counts in the lexical features.
    A pair's features depend on nothing but the pair, `list_agreement` alone excepted: it compares a title with the
    others of its list, weighted by how well they fit the query. A later phase, whose list has been cut, computes it
    over the titles that are left; those cut off had the smallest weights.
    What is computed of a text is kept in `texts` (about 3 kB each), where another featurizer of the same encoder finds
    it too; the statistics of titles stay apart. `transform` may be called from several threads at once.
    """

    names: tuple[str, ...] = (COSINE, AGREEMENT, *LEXICAL_NAMES)
    n_features = len(names)
    rising: frozenset[str] = frozenset(names) - {"first_position", "title_words", "query_words"}
    """Features of which more is never worse: a ranker that is held to that learns from few queries."""

    def __init__(
        self, directory: Path, corpus: Corpus, encoder: SentenceEncoder, encoder_digest: str, texts: TextCache
    ) -> None:
        self._directory = directory
        self._corpus = corpus
        self._encoder = encoder
        self.encoder_digest = encoder_digest
        self.texts = texts

    @classmethod
    def load(
        cls, directory: Path, settings: PairFeatures, *, n_threads: int = 1, texts: TextCache | None = None
    ) -> PairFeaturizer:
        """Open what `save` wrote; BundleError where a file cannot be read.

        n_threads: cores one embedding may use (0: all). texts: where what is computed of a text is kept (None: a cache
        of its own, of 128 MiB).
        """
        encoder = SentenceEncoder(directory / ENCODER, directory / TOKENIZER, settings.max_tokens, n_threads=n_threads)
        return cls(
            directory,
            _read_corpus(directory / STATISTICS),
            encoder,
            _encoder_digest(directory, settings.max_tokens),
            TextCache(_MAX_BYTES) if texts is None else texts,
        )

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

    def vector(self, text: str) -> NDArray[np.float32] | None:
        """The text's vector [E], known or computed and kept; None where it has none."""
        return self._text(text).vector

    def remember(self, text: str, vector: NDArray[np.float32] | None) -> None:
        """Keep a vector that `vector` of the same encoder gave."""
        if not self.texts.has(self.encoder_digest, text):
            self.texts.put(self.encoder_digest, text, KnownText(read(text), vector))

    def _text(self, text: str) -> KnownText:
        known = self.texts.get(self.encoder_digest, text)
        if known is None:
            # Two threads may embed the same text at once, and come to the same vector.
            known = KnownText(read(text), self._encoder.embed(text))
            self.texts.put(self.encoder_digest, text, known)
        return known


def _encoder_digest(directory: Path, max_tokens: int) -> str:
    """Name an encoder by all that a text's vector depends on."""
    digest = hashlib.sha256(f"{max_tokens}".encode())
    for name in (ENCODER, TOKENIZER):
        digest.update(hashlib.sha256((directory / name).read_bytes()).digest())
    return digest.hexdigest()


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


def _cosines(query: KnownText, titles: Sequence[KnownText]) -> NDArray[np.float32]:
    cosines_D = np.full(len(titles), np.nan, dtype=np.float32)
    if query.vector is None:
        return cosines_D
    known = [place for place, title in enumerate(titles) if title.vector is not None]
    if known:
        vectors_DE = np.stack([vector_E for title in titles if (vector_E := title.vector) is not None])
        # A sum a row, in one fixed order: a matrix product's rounding depends on how many rows it has.
        cosines_D[known] = (vectors_DE * query.vector).sum(axis=1)
    return cosines_D


def _agreements(titles: Sequence[KnownText], cosines_D: NDArray[np.float32]) -> NDArray[np.float32]:
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
