"""Tagging: words in, entities with character offsets out; the same decoding at evaluation and in the gateway.

Shapes: B texts, T tokens, W words, K tags, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.answers import Entity, Intent, Reading
from models.batch import Arrays, Encoded, Word, parts
from models.chain import TagChain
from models.gazetteer import INPUT as GAZETTEER_INPUT
from models.gazetteer import Gazetteer
from models.intent import decode_intents
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
        """Read entities (and the intent, where joint) out of one request's outputs."""
        return self.decode_batch([text], [encoded], [outputs])[0]

    def decode_batch(
        self, texts: Sequence[str], encoded: Sequence[Encoded], outputs: Sequence[Arrays]
    ) -> list[Reading]:
        """Read several requests' outputs, each as if it were alone, in a part of the time.

        An entity's confidence is the chance that all of its words' tags are right, as `TagChain.chances` has it.
        """
        readings: list[Reading] = []
        for part in parts(len(texts)):
            readings += self._readings(texts[part], encoded[part], outputs[part])
        return readings

    def _readings(
        self, texts: Sequence[str], encoded: Sequence[Encoded], outputs: Sequence[Arrays]
    ) -> Iterator[Reading]:
        logits = [self.word_logits(*one) for one in zip(encoded, outputs, strict=True)]
        paths = self._chain.best(logits)
        found = [spans([self._tags[tag] for tag in path]) for path in paths]
        chances = self._chain.chances(logits, paths, [[(span.start, span.end) for span in its] for its in found])
        intents: Sequence[Intent | None] = [None] * len(texts)
        if self._labels is not None and "intent_logits" in outputs[0]:
            logits_BC = np.array([one["intent_logits"] for one in outputs])
            intents = decode_intents(logits_BC, self._labels, self._temperature)
        for text, one, intent, its, sure in zip(texts, encoded, intents, found, chances, strict=True):
            yield Reading(intent, tuple(map(partial(_entity, text, one.words), its, sure)))

    def tags(self, encoded: Sequence[Encoded], outputs: Sequence[Arrays]) -> list[list[str]]:
        """Give the tag of every word of each text, as `decode` reads them."""
        paths: list[list[int]] = []
        for part in parts(len(encoded)):
            paths += self._chain.best(
                [self.word_logits(*one) for one in zip(encoded[part], outputs[part], strict=True)]
            )
        return [[self._tags[tag] for tag in path] for path in paths]

    def word_logits(self, encoded: Encoded, outputs: Arrays) -> NDArray[np.float64]:
        """Logits [W, K] at the first piece of every word; a word without pieces (-1) is surely outside."""
        first_pieces, logits = list(encoded.first_pieces), outputs["tag_logits"]
        pieces = logits[list(encoded.word_windows), first_pieces] if encoded.word_windows else logits[first_pieces]
        logits_WK = pieces.astype(np.float64)
        if -1 in first_pieces:
            without_pieces_W = np.array(first_pieces) < 0
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


def _entity(text: str, words: Sequence[Word], span: Span, chance: float) -> Entity:
    start, end = _trim(text, words[span.start].start, words[span.end - 1].end)
    return Entity(span.type, text[start:end], start, end, chance)


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
