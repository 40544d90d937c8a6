"""Trained models whose answers a student learns: bundles, asked as they are served, each by tokens of its own.

Shapes: N texts, W words, C intent labels, K tags, V tokens of the vocabulary, D dimensions of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from scipy.special import expit, softmax
from tokenizers import Tokenizer

from models.batch import Arrays, Encoded, collate, parts
from models.chain import TRANSITIONS, TagChain
from models.errors import ConfigError
from models.gazetteer import GAZETTEER
from models.gazetteer import INPUT as GAZETTEER_INPUT
from models.intent import IntentModel
from models.manifest import Contents, SubwordText
from models.model import TOKENIZER, open_model
from models.ranking import RankingModel
from models.scope import DISTANCE_OUTPUT
from models.session import OnnxSession
from models.tagging import TaggingModel
from models.text import open_tokenizer
from registry.bundle import MODEL, Bundle, open_bundle
from training.batches import answers_of
from training.config import StudentConfig

TextModel = IntentModel | TaggingModel

_ANSWER_TOKENS = 1024
_READ = {"input_ids", "attention_mask", GAZETTEER_INPUT}
_ANSWERED = {"intent_logits", "tag_logits", DISTANCE_OUTPUT}

_SHARED = ("labels", "tags", "gives_several_labels", "implied_labels", "has_transitions", "gazetteer")
"""Of the manifest, what several teachers must have in common."""


@dataclass(frozen=True)
class Chances:
    """How likely each label and each tag is of N texts; None where that was not asked.

    intents: [N, C]. tags: [W, K] of every text, in half precision: the largest thing in a distillation's memory.
    """

    intents: NDArray[np.float32] | None
    tags: tuple[NDArray[np.float16], ...] | None


@dataclass(frozen=True)
class Teacher:
    """One bundle, or several that answer the same questions; several find an answer as likely as in the mean.

    models: what reads texts for each. contents: of the first.
    """

    bundles: tuple[Bundle, ...]
    models: tuple[TextModel, ...]
    contents: Contents

    @classmethod
    def open(cls, config: StudentConfig) -> Teacher:
        """Open the bundles; ConfigError where no student can learn from one of them, or not from all together."""
        bundles = tuple(open_bundle(Path(directory)) for directory in config.teacher)
        for bundle in bundles:
            _check(bundle, config.task)
            _compare(bundles[0], bundle)
        contents = Contents(**{name: getattr(bundles[0].manifest, name) for name in Contents.model_fields})
        return cls(bundles, tuple(map(_reader, bundles)), contents)

    def chances(
        self, texts: Sequence[str], temperature: float, progress: Callable[[int], None] = lambda _: None
    ) -> Chances:
        """How likely the served variants find each answer to each text, their scores divided by `temperature`.

        Of tags with transitions the marginals over whole sequences, else the softmax of every word. InputError for a
        text that one of them cannot read.
        """
        intents: list[NDArray[np.float32]] = []
        tags: list[list[NDArray[np.float32]]] = []
        for place, (bundle, model) in enumerate(zip(self.bundles, self.models, strict=True)):
            requests = [model.encode(text) for text in texts]
            answers = _ask(bundle, requests, progress, n_before=place * len(texts))
            if "intent_logits" in answers[0]:
                logits_NC = np.stack([one["intent_logits"] for one in answers]).astype(np.float32) / temperature
                intents.append(expit(logits_NC) if self.contents.gives_several_labels else softmax(logits_NC, axis=1))
            if isinstance(model, TaggingModel):
                marginals = self._marginals(bundle, temperature)
                logits = [model.word_logits(*one) / temperature for one in zip(requests, answers, strict=True)]
                tags.append([one for part in parts(len(logits)) for one in marginals(logits[part])])
        return Chances(
            intents=np.mean(intents, axis=0) if intents else None,
            tags=tuple(np.mean(each, axis=0).astype(np.float16) for each in zip(*tags, strict=True)) if tags else None,
        )

    def _marginals(
        self, bundle: Bundle, temperature: float
    ) -> Callable[[Sequence[NDArray[np.float64]]], list[NDArray[np.float32]]]:
        """From scores [W, K] of the words of texts to the chance of each tag at each word."""
        if not self.contents.has_transitions:
            return lambda logits: [softmax(logits_WK, axis=1).astype(np.float32) for logits_WK in logits]
        chain = TagChain(self.contents.tags or (), _transitions(bundle) / temperature)
        return lambda logits: [marginals_WK.astype(np.float32) for marginals_WK in chain.marginals(logits)]

    @cached_property
    def transitions(self) -> NDArray[np.float32] | None:
        """What they learned of the order of tags [K + 2, K], in the mean; None where they learned none of it."""
        if not self.contents.has_transitions:
            return None
        mean: NDArray[np.float32] = np.mean([_transitions(bundle) for bundle in self.bundles], axis=0)
        return mean

    @cached_property
    def token_vectors(self) -> NDArray[np.float32]:
        """What the first one knows of each token [V, D]: the embedding, and its answers to a text of that token alone.

        Both parts are centred and have a total variance of 1.
        """
        embeddings_VD = _embeddings(self.bundles[0])
        alone = _ask(self.bundles[0], [self._alone(token) for token in range(len(embeddings_VD))])
        answers = [[one["intent_logits"] for one in alone]] if "intent_logits" in alone[0] else []
        if "tag_logits" in alone[0]:
            answers.append([one["tag_logits"][self._place] for one in alone])
        parts = [embeddings_VD, np.concatenate([np.stack(one) for one in answers], axis=1)]
        centred = [part - part.mean(axis=0) for part in parts]
        return np.concatenate([part / max(np.sqrt(part.var(axis=0).sum()), 1e-12) for part in centred], axis=1)

    def _alone(self, token: int) -> Encoded:
        """A text of one token, between the special ones that every text gets."""
        ids = [*self._frame[: self._place], token, *self._frame[self._place + 1 :]]
        arrays = {"input_ids": np.array(ids), "attention_mask": np.ones(len(ids), dtype=np.int64)}
        if self.contents.gazetteer is not None:
            arrays[GAZETTEER_INPUT] = np.zeros(len(ids), dtype=np.int64)
        return Encoded(arrays)

    @property
    def name(self) -> str:
        """Name of the model, or of the first of several."""
        return self.bundles[0].manifest.name

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the first one, without padding and truncation."""
        return open_tokenizer(self.bundles[0].path / TOKENIZER)

    @cached_property
    def _frame(self) -> list[int]:
        ids: list[int] = self.tokenizer.encode("a").ids
        return ids

    @cached_property
    def _place(self) -> int:
        """Where the first token of a text stands, after the special ones."""
        return self._frame.index(self.tokenizer.encode("a", add_special_tokens=False).ids[0])


def _reader(bundle: Bundle) -> TextModel:
    model = open_model(bundle.path, bundle.manifest)
    if isinstance(model, RankingModel):
        raise TypeError(f"a teacher reads texts, {bundle.manifest.name} does not")
    return model


def _check(bundle: Bundle, task: str) -> None:
    """Refuse a bundle that no student of `task` can learn from."""
    manifest = bundle.manifest
    if manifest.family != task:
        raise ConfigError(
            f"the teacher of a student for {task} must be of that family, {manifest.name} is a model for "
            f"{manifest.family}",
            field="teacher",
        )
    reads, answers = ({spec.name for spec in side} for side in (manifest.signature.inputs, manifest.signature.outputs))
    if not isinstance(manifest.text, SubwordText) or not reads <= _READ or not answers <= _ANSWERED:
        raise ConfigError(
            f"a student learns from a transformer (tokens in, logits out), {manifest.name} reads "
            f"{', '.join(sorted(reads))} and answers {', '.join(sorted(answers))}; name another teacher",
            field="teacher",
        )


def _compare(first: Bundle, other: Bundle) -> None:
    """Refuse two teachers whose answers cannot be joined."""
    differing = [name for name in _SHARED if getattr(first.manifest, name) != getattr(other.manifest, name)]
    if first.manifest.files.get(GAZETTEER) != other.manifest.files.get(GAZETTEER):
        differing.append(GAZETTEER)
    if differing:
        raise ConfigError(
            f"teachers must answer alike, {first.manifest.name} ({first.digest[:12]}) and "
            f"{other.manifest.name} ({other.digest[:12]}) differ in {', '.join(differing)}; train them on the "
            "same rows, each with its own training.seed",
            field="teacher",
        )


def _ask(
    bundle: Bundle, requests: Sequence[Encoded], progress: Callable[[int], None] = lambda _: None, n_before: int = 0
) -> list[Arrays]:
    """What the served variant answers to each request: `intent_logits` [C], `tag_logits` [T, K] of its tokens."""
    session = OnnxSession(bundle.model_file(), n_threads=torch.get_num_threads())
    signature = bundle.manifest.signature
    return answers_of(
        lambda batch: session.run(collate(batch, signature)),
        requests,
        signature,
        _ANSWER_TOKENS,
        lambda n_done: progress(n_before + n_done),
    )


def _transitions(bundle: Bundle) -> NDArray[np.float32]:
    learned: NDArray[np.float32] = np.load(bundle.path / TRANSITIONS, allow_pickle=False)
    return learned


def _embeddings(bundle: Bundle) -> NDArray[np.float32]:
    """The table of a bundle's token embeddings [V, D], out of `model.onnx`."""
    graph = onnx.load(str(bundle.path / MODEL)).graph
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather" and node.input[1] == "input_ids"}
    for tensor in graph.initializer:
        if tensor.name in tables and len(tensor.dims) == 2:
            return np.array(numpy_helper.to_array(tensor), dtype=np.float32)
    raise ConfigError(
        f"a teacher must look its tokens up in a table of embeddings, {bundle.manifest.name} does not; "
        "name another one",
        field="teacher",
    )
