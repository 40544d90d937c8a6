"""Tagging: words in, entities with character offsets out; the same decoding at evaluation and in the gateway.

Shapes: T tokens, W words, K tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.answers import Entity, Reading
from models.batch import Arrays, Encoded
from models.chain import TagChain
from models.gazetteer import INPUT as GAZETTEER_INPUT
from models.gazetteer import Gazetteer
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

    A joint model also gives `intent_logits` [C]; its intent is then part of the reading. n_ids: tokens it can tell
    apart, numbered from 0.
    """

    def __init__(
        self,
        contents: Contents,
        encoder: SubwordEncoder,
        chain: TagChain | None = None,
        gazetteer: Gazetteer | None = None,
    ) -> None:
        if not contents.tags:
            raise ValueError("a tagging model must have tags")
        self._tags = contents.tags
        self._labels = contents.labels
        self._temperature = contents.calibration.temperature
        self._encoder = encoder
        self.n_ids = encoder.n_ids
        self._chain = chain or TagChain(contents.tags)
        self._gazetteer = gazetteer

    @classmethod
    def open(cls, directory: Path, contents: Contents, encoder: SubwordEncoder) -> TaggingModel:
        """Read what a bundle holds beside its tokenizer: transitions and terms, where it has them."""
        return cls(
            contents,
            encoder,
            TagChain.load(directory, contents.tags or ()) if contents.has_transitions else None,
            Gazetteer.load(directory) if contents.gazetteer is not None else None,
        )

    def encode(self, text: str) -> Encoded:
        """Tokens of the text and where its words begin; InputError for a text beyond the model's longest."""
        words = split_words(text)
        if self._gazetteer is None:
            return self._encoder.encode_words(text, words)
        return self._encoder.encode_words(text, words, {GAZETTEER_INPUT: self._gazetteer.match(words)})

    def decode(self, text: str, encoded: Encoded, outputs: Arrays) -> Reading:
        """Read entities (and the intent, where joint) out of one request's outputs.

        An entity's confidence is the chance that all of its words' tags are right, as `TagChain.chances` has it.
        """
        logits_WK = self.word_logits(encoded, outputs)
        path = self._chain.best(logits_WK)
        found = spans([self._tags[tag] for tag in path])
        chances = self._chain.chances(logits_WK, path, [(span.start, span.end) for span in found])
        entities = []
        for span, chance in zip(found, chances, strict=True):
            start, end = _trim(text, encoded.words[span.start].start, encoded.words[span.end - 1].end)
            entities.append(Entity(span.type, text[start:end], start, end, chance))
        intent = None
        if self._labels is not None and "intent_logits" in outputs:
            intent = decode_intent(outputs["intent_logits"], self._labels, self._temperature)
        return Reading(intent=intent, entities=tuple(entities))

    def tags(self, text: str, encoded: Encoded, outputs: Arrays) -> list[str]:
        """Give the tag of every word of the text, as `decode` reads them."""
        del text
        return [self._tags[tag] for tag in self._chain.best(self.word_logits(encoded, outputs))]

    def word_logits(self, encoded: Encoded, outputs: Arrays) -> NDArray[np.float64]:
        """Logits [W, K] at the first piece of every word; a word without pieces (-1) is surely outside."""
        first_W = np.asarray(encoded.first_pieces, dtype=np.int64)
        logits = np.asarray(outputs["tag_logits"], dtype=np.float64)
        logits_WK = logits[np.asarray(encoded.word_windows), first_W] if encoded.word_windows else logits[first_W]
        without_pieces_W = first_W < 0
        if without_pieces_W.any():
            logits_WK[without_pieces_W] = -np.inf
            logits_WK[without_pieces_W, self._tags.index(OUTSIDE)] = 0.0
        return logits_WK


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
