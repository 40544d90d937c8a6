"""Tagging: words in, entities with character offsets out; the same decoding at evaluation and in the gateway.

Shapes: T tokens, W words, K tags, I the tags that continue a span (`I-...`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models.answers import Entity, Reading
from models.batch import Arrays, Encoded
from models.intent import decode_intent
from models.manifest import Contents
from models.text import SubwordEncoder, split_words

OUTSIDE = "O"

_PUNCTUATION = ",.!?;:\"'`“”‘’«»"


@dataclass(frozen=True, slots=True)
class Span:
    """Words `start` to `end` (exclusive) that together name one `type`."""

    type: str
    start: int
    end: int


class TaggingModel:
    """Turns a text into tokens for `model.onnx`, and its outputs `tag_logits` [T, K] into entities.

    A joint model also gives `intent_logits` [C]; its intent is then part of the reading.
    """

    def __init__(self, contents: Contents, encoder: SubwordEncoder) -> None:
        if not contents.tags:
            raise ValueError("a tagging model must have tags")
        self._tags = contents.tags
        self._labels = contents.labels
        self._temperature = contents.calibration.temperature
        self._encoder = encoder

    def encode(self, text: str) -> Encoded:
        """Tokens of the text and where its words begin; InputError for a text beyond the model's longest."""
        return self._encoder.encode_words(text, split_words(text))

    def decode(self, text: str, encoded: Encoded, outputs: Arrays) -> Reading:
        """Read entities (and the intent, where joint) out of one request's outputs.

        An entity's confidence is the product of its words' probabilities: the chance that all of them are right,
        as the network takes words to be independent given the text.
        """
        logits_WK = self._word_logits(encoded, outputs)
        path = viterbi(logits_WK, self._tags)
        entities = []
        for span in spans([self._tags[tag] for tag in path]):
            words = slice(span.start, span.end)
            chance_W = _softmax(logits_WK[words])[np.arange(span.end - span.start), path[words]]
            start, end = _trim(text, encoded.words[span.start].start, encoded.words[span.end - 1].end)
            entities.append(Entity(span.type, text[start:end], start, end, float(chance_W.prod())))
        intent = None
        if self._labels is not None and "intent_logits" in outputs:
            intent = decode_intent(outputs["intent_logits"], self._labels, self._temperature)
        return Reading(intent=intent, entities=tuple(entities))

    def tags(self, text: str, encoded: Encoded, outputs: Arrays) -> list[str]:
        """Give the tag of every word of the text, as `decode` reads them."""
        del text
        return [self._tags[tag] for tag in viterbi(self._word_logits(encoded, outputs), self._tags)]

    def _word_logits(self, encoded: Encoded, outputs: Arrays) -> NDArray[np.float64]:
        """Logits [W, K] at the first piece of every word; a word without pieces (-1) is surely outside."""
        first_W = np.asarray(encoded.first_pieces, dtype=np.int64)
        logits_WK = np.asarray(outputs["tag_logits"], dtype=np.float64)[first_W]
        without_pieces_W = first_W < 0
        if without_pieces_W.any():
            logits_WK[without_pieces_W] = -np.inf
            logits_WK[without_pieces_W, self._tags.index(OUTSIDE)] = 0.0
        return logits_WK


def viterbi(logits_WK: NDArray[np.float64], tags: Sequence[str]) -> list[int]:
    """Indices [W] of the likeliest sequence of tags in which `I-x` follows only `B-x` or `I-x`.

    Maximizes the sum over words of log softmax(logits_WK). Each word's normalizer is the same for every sequence, so
    logits serve as they are. Where the likeliest tag of every word already makes a valid sequence, that is the
    maximum; otherwise the Viterbi recursion (Forney 1973) runs, in O(W K) as all transitions but those into `I-x` are
    free. Of equal sequences the first tag in the order of `tags` wins. `tags` must hold `O` or a `B-x`.
    """
    if not len(logits_WK):
        return []
    openers_K, insides_I = _structure(tuple(tags))
    greedy: list[int] = logits_WK.argmax(axis=1).tolist()
    if _is_valid(greedy, openers_K):
        return greedy
    openers_I = np.array([openers_K[inside] for inside in insides_I])
    scores_K = logits_WK[0].copy()
    scores_K[insides_I] = -np.inf
    origins_WK = np.empty(logits_WK.shape, dtype=np.int64)
    for word in range(1, len(logits_WK)):
        best = int(scores_K.argmax())
        from_K = np.full(len(scores_K), scores_K[best])
        from_opener_I, from_inside_I = scores_K[openers_I], scores_K[insides_I]
        from_K[insides_I] = np.maximum(from_opener_I, from_inside_I)
        origins_WK[word] = best
        origins_WK[word, insides_I] = np.where(from_opener_I >= from_inside_I, openers_I, insides_I)
        scores_K = from_K + logits_WK[word]
    path = [int(scores_K.argmax())]
    for word in range(len(logits_WK) - 1, 0, -1):
        path.append(int(origins_WK[word, path[-1]]))
    return path[::-1]


def spans(tags: Sequence[str]) -> list[Span]:
    """Spans of a BIO sequence, left to right; a stray `I-x` opens a span, as in conlleval and seqeval."""
    found: list[Span] = []
    start, open_type = 0, ""
    for word, tag in enumerate((*tags, OUTSIDE)):
        kind, _, tag_type = tag.partition("-")
        if open_type and (kind != "I" or tag_type != open_type):
            found.append(Span(open_type, start, word))
            open_type = ""
        if tag_type and not open_type:
            start, open_type = word, tag_type
    return found


@lru_cache(maxsize=64)
def _structure(tags: tuple[str, ...]) -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """For every tag the tag that opens its span, -1 where it needs none; and the tags that need one.

    An `I-x` without a `B-x` among the tags names itself as its opener: it can never be reached.
    """
    indices = {tag: index for index, tag in enumerate(tags)}
    openers_K = tuple(
        indices.get(f"B-{tag[2:]}", index) if tag.startswith("I-") else -1 for index, tag in enumerate(tags)
    )
    return openers_K, np.array([index for index, opener in enumerate(openers_K) if opener >= 0], dtype=np.int64)


def _is_valid(path: Sequence[int], openers_K: Sequence[int]) -> bool:
    previous = -1
    for tag in path:
        opener = openers_K[tag]
        if opener >= 0 and (previous < 0 or previous not in (opener, tag)):
            return False
        previous = tag
    return True


def _softmax(logits_WK: NDArray[np.float64]) -> NDArray[np.float64]:
    odds_WK = np.exp(logits_WK - logits_WK.max(axis=1, keepdims=True))
    return np.asarray(odds_WK / odds_WK.sum(axis=1, keepdims=True))


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out punctuation around an entity; one that is only punctuation stays as it is."""
    entity = text[start:end]
    left = len(entity) - len(entity.lstrip(_PUNCTUATION))
    right = len(entity) - len(entity.rstrip(_PUNCTUATION))
    if left == len(entity):
        return start, end
    # A mark after a digit is an inch or a foot (10"), not the end of a quotation that began with the entity.
    if right and not left and entity[-right] in "\"'" and entity[-right - 1].isdigit():
        right -= 1
    return start + left, end - right
