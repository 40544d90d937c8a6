"""A trained model whose answers a student learns: a bundle, asked as it is served.

Shapes: T tokens, C intent labels, K tags, V tokens of the vocabulary, D dimensions of an embedding.
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
from tokenizers import Tokenizer

from models.batch import Arrays, Encoded, collate
from models.errors import ConfigError
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


@dataclass(frozen=True)
class Teacher:
    """A bundle that answers texts through its tokens."""

    bundle: Bundle
    model: TextModel
    contents: Contents

    @classmethod
    def open(cls, config: StudentConfig) -> Teacher:
        """Open the bundle; ConfigError where no student can learn from it."""
        bundle = open_bundle(Path(config.teacher))
        manifest = bundle.manifest
        contents = Contents(**{name: getattr(manifest, name) for name in Contents.model_fields})
        if contents.family != config.task:
            raise ConfigError(
                f"the teacher of a student for {config.task} must be of that family, {manifest.name} is a model for "
                f"{contents.family}",
                field="teacher",
            )
        reads, answers = (
            {spec.name for spec in side} for side in (contents.signature.inputs, contents.signature.outputs)
        )
        model = open_model(bundle.path, contents)
        if (
            isinstance(model, RankingModel)
            or not isinstance(contents.text, SubwordText)
            or not reads <= _READ
            or not answers <= _ANSWERED
        ):
            raise ConfigError(
                f"a student learns from a transformer (tokens in, logits out), {manifest.name} reads "
                f"{', '.join(sorted(reads))} and answers {', '.join(sorted(answers))}; name another teacher",
                field="teacher",
            )
        return cls(bundle, model, contents)

    def answer(self, requests: Sequence[Encoded], progress: Callable[[int], None] = lambda _: None) -> list[Arrays]:
        """What the served variant answers to each request: `intent_logits` [C], `tag_logits` [T, K] of its tokens."""
        session = OnnxSession(self.bundle.model_file(), n_threads=torch.get_num_threads())
        signature = self.contents.signature
        return answers_of(
            lambda batch: session.run(collate(batch, signature)), requests, signature, _ANSWER_TOKENS, progress
        )

    @cached_property
    def token_vectors(self) -> NDArray[np.float32]:
        """What it knows of each token [V, D]: the embedding, and its answers to a text of that token alone.

        Both parts are centred and have a total variance of 1.
        """
        embeddings_VD = self._embeddings()
        alone = self.answer([self._alone(token) for token in range(len(embeddings_VD))])
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

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, without padding and truncation."""
        return open_tokenizer(self.bundle.path / TOKENIZER)

    @cached_property
    def _frame(self) -> list[int]:
        ids: list[int] = self.tokenizer.encode("a").ids
        return ids

    @cached_property
    def _place(self) -> int:
        """Where the first token of a text stands, after the special ones."""
        return self._frame.index(self.tokenizer.encode("a", add_special_tokens=False).ids[0])

    def _embeddings(self) -> NDArray[np.float32]:
        """The table of its token embeddings [V, D], out of `model.onnx`."""
        graph = onnx.load(str(self.bundle.path / MODEL)).graph
        tables = {node.input[0] for node in graph.node if node.op_type == "Gather" and node.input[1] == "input_ids"}
        for tensor in graph.initializer:
            if tensor.name in tables and len(tensor.dims) == 2:
                return np.array(numpy_helper.to_array(tensor), dtype=np.float32)
        raise ConfigError(
            f"a teacher must look its tokens up in a table of embeddings, {self.bundle.manifest.name} does not; "
            "name another teacher",
            field="teacher",
        )
