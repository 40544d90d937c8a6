"""Distillation: a small network that learns to answer as a trained one does, and takes its place in the line.

The teacher is a bundle, asked as it is served. It labels the training texts, texts made of them (`training.augment`)
and unlabelled queries; the student is trained on those answers (Hinton et al. 2015, "Distilling the knowledge in a
neural network").

Shapes: N examples, B examples of a batch, T tokens, W words, C intent labels, K tags, V tokens of the vocabulary, D
dimensions of the teacher's embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from models.batch import Arrays, Encoded, collate, split
from models.errors import ConfigError, DataError, InputError
from models.intent import IntentModel
from models.manifest import Contents, SubwordText
from models.metrics import intent_metrics, tagging_metrics
from models.model import TOKENIZER, open_model
from models.networks.student import student_encoder
from models.networks.transformer import TransformerNetwork
from models.ranking import RankingModel
from models.session import OnnxSession
from models.tagging import TaggingModel
from models.text import SubwordEncoder
from registry.bundle import MODEL, Bundle, open_bundle
from training.augment import augment, neighbours_of
from training.batches import sorted_batches
from training.config import IntentStudentConfig, JointStudentTraining, TaggingStudentConfig
from training.data.splits import IntentRows, Splits, TaggingRows
from training.fit import Checkpoint, Recorder
from training.loop import Loss, Score, train
from training.losses import weighted
from training.network import Draft, FittedNetwork

StudentConfig = IntentStudentConfig | TaggingStudentConfig
TextModel = IntentModel | TaggingModel

_ANSWER_TOKENS = 1024
_READ = {"input_ids", "attention_mask"}
_ANSWERED = {"intent_logits", "tag_logits"}


def fit(
    config: StudentConfig, splits: Splits[IntentRows] | Splits[TaggingRows], recorder: Recorder, checkpoint: Checkpoint
) -> FittedNetwork:
    """Train a student of the bundle in the directory `config.teacher`, stopped early on the valid rows."""
    teacher = Teacher.open(config)
    _refuse_unknown_labels(teacher, splits.train)
    drafted = _draft(config, teacher)
    encoded = drafted.encode(splits, teacher.model.encode)
    texts = list(splits.train.requests())
    more, n_refused = _encode_those_that_fit(_more_texts(config, splits, teacher, texts), teacher.model)
    if n_refused:
        recorder.say(f"note: {n_refused} unlabelled or generated texts are longer than the teacher reads; left out")
    examples = [*encoded["train"], *more]
    answers = teacher.answer(examples, recorder)
    facts = train(
        drafted.network,
        drafted.contents.signature,
        examples,
        _loss(config, examples, answers),
        encoded["valid"],
        _scorer(teacher.model, splits.valid, encoded["valid"]),
        config.training,
        recorder,
        checkpoint,
    )
    return FittedNetwork(drafted, {**facts, "n_examples": len(examples)})


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
            or reads != _READ
            or not answers <= _ANSWERED
        ):
            raise ConfigError(
                f"a student learns from a transformer (tokens in, logits out), {manifest.name} reads "
                f"{', '.join(sorted(reads))} and answers {', '.join(sorted(answers))}; name another teacher",
                field="teacher",
            )
        return cls(bundle, model, contents)

    def answer(self, requests: Sequence[Encoded], recorder: Recorder) -> list[Arrays]:
        """What the served variant answers to each request: `intent_logits` [C], `tag_logits` [T, K] of its tokens."""
        session = OnnxSession(self.bundle.model_file(), n_threads=torch.get_num_threads())
        signature = self.contents.signature
        answers: dict[int, Arrays] = {}
        for chosen in sorted_batches(requests, _ANSWER_TOKENS):
            batch = [requests[index] for index in chosen]
            for index, one in zip(chosen, split(session.run(collate(batch, signature)), batch, signature), strict=True):
                answers[index] = {
                    name: array[: requests[index].length].copy() if array.ndim == 2 else array.copy()
                    for name, array in one.items()
                }
            recorder.progress("teacher", len(answers), len(requests))
        return [answers[index] for index in range(len(requests))]

    @cached_property
    def embeddings(self) -> NDArray[np.float32]:
        """Its token embeddings [V, D], out of `model.onnx`."""
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


def _refuse_unknown_labels(teacher: Teacher, rows: IntentRows | TaggingRows) -> None:
    if rows.labels is None or teacher.contents.labels is None:
        return
    if unknown := sorted(set(rows.labels) - set(teacher.contents.labels)):
        raise DataError(
            f"the teacher must know every label of {rows.file}, {teacher.bundle.manifest.name} does not know "
            f"{', '.join(unknown[:5])}; train it again on these rows first",
            field="teacher",
        )


def _draft(config: StudentConfig, teacher: Teacher) -> Draft:
    """The untrained student; its bundle says of itself what the teacher's does, so that one can replace the other."""
    text, pad = teacher.contents.text, teacher.contents.signature.inputs[0].pad
    if not isinstance(text, SubwordText):
        raise TypeError(f"a teacher that was opened reads tokens, got {text!r}")
    torch.manual_seed(config.training.seed)
    network = TransformerNetwork(
        student_encoder(
            torch.from_numpy(teacher.embeddings),
            **config.model.model_dump(exclude={"kind"}),
            n_positions=text.max_tokens,
            pad=pad,
        ),
        n_labels=len(teacher.contents.labels or ()),
        n_tags=len(teacher.contents.tags or ()),
        dropout=config.model.dropout,
    )
    tokenizer_json = teacher.bundle.path / TOKENIZER
    reader = SubwordEncoder(tokenizer_json, text.max_tokens)
    return Draft(network, teacher.contents.model_copy(update={"encoder": None}), tokenizer_json, reader)


def _more_texts(
    config: StudentConfig, splits: Splits[IntentRows] | Splits[TaggingRows], teacher: Teacher, texts: Sequence[str]
) -> list[str]:
    """Unlabelled queries that are not training texts, then texts made of the training texts."""
    known = set(texts)
    logged = [] if splits.unlabelled is None else [text for text in splits.unlabelled.texts if text not in known]
    if not config.training.n_generated:
        return logged
    tokenizer = Tokenizer.from_file(str(teacher.bundle.path / TOKENIZER))
    neighbours = neighbours_of(texts, tokenizer, teacher.embeddings)
    n_wanted = config.training.n_generated * len(texts)
    groups = splits.train.labels or [""] * len(texts)
    return [*logged, *augment(texts, groups, n_wanted, neighbours, config.training.seed)]


def _encode_those_that_fit(texts: Sequence[str], model: TextModel) -> tuple[list[Encoded], int]:
    encoded: list[Encoded] = []
    for text in texts:
        try:
            encoded.append(model.encode(text))
        except InputError:
            continue
    return encoded, len(texts) - len(encoded)


def _loss(config: StudentConfig, examples: Sequence[Encoded], answers: Sequence[Arrays]) -> Loss:
    """Towards the teacher's answers to all its questions."""
    losses: list[tuple[float, Loss]] = []
    temperature = config.training.temperature
    if "tag_logits" in answers[0]:
        losses.append((1.0, soft_tag_loss(examples, [one["tag_logits"] for one in answers], temperature)))
    if "intent_logits" in answers[0]:
        joint = config.training.intent_loss_weight if isinstance(config.training, JointStudentTraining) else 1.0
        logits_NC = np.stack([one["intent_logits"] for one in answers])
        losses.append((joint, soft_intent_loss(logits_NC, temperature)))
    return weighted(losses)


def soft_intent_loss(teacher_NC: NDArray[np.generic], temperature: float) -> Loss:
    """Cross-entropy of `intent_logits` [B, C] to the teacher's, as `soft_cross_entropy`, mean over texts."""
    answers_NC = torch.from_numpy(np.asarray(teacher_NC, dtype=np.float32))

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        return soft_cross_entropy(outputs["intent_logits"], answers_NC[chosen], temperature)

    return loss


def soft_tag_loss(examples: Sequence[Encoded], teacher: Sequence[NDArray[np.generic]], temperature: float) -> Loss:
    """The same of `tag_logits` [B, T, K] at the first token of every word, mean over words; teacher: [T, K] of each."""
    firsts = [np.array([piece for piece in one.first_pieces if piece >= 0], dtype=np.int64) for one in examples]
    # Half precision: these answers are the largest thing in a distillation's memory.
    answers = [
        np.asarray(logits_TK[first_W], dtype=np.float16) for logits_TK, first_W in zip(teacher, firsts, strict=True)
    ]

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        rows = np.repeat(np.arange(len(chosen)), [len(firsts[index]) for index in chosen])
        places = np.concatenate([firsts[index] for index in chosen])
        wanted = torch.from_numpy(np.concatenate([answers[index] for index in chosen]).astype(np.float32))
        return soft_cross_entropy(outputs["tag_logits"][rows, places], wanted, temperature)

    return loss


def soft_cross_entropy(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Mean over rows of T^2 x the cross-entropy of softmax(logits / T) to softmax(wanted / T); 0 without rows.

    Hinton et al. 2015, section 2: T^2 keeps the gradient's size, whatever T.
    """
    if not len(logits):
        return logits.sum()
    total = functional.cross_entropy(logits / temperature, (wanted / temperature).softmax(-1), reduction="mean")
    return temperature**2 * total


def _scorer(
    model: TextModel, rows: IntentRows | TaggingRows, encoded: Sequence[Encoded]
) -> Callable[[list[Arrays]], Score]:
    """Judge the valid rows: `accuracy`, or the mean of `span_f1` and, where joint, `intent_accuracy`."""
    texts = rows.requests()

    def score(outputs: list[Arrays]) -> Score:
        answered = list(zip(texts, encoded, outputs, strict=True))
        intents = [model.decode(*one).intent for one in answered]
        labels = [intent.label for intent in intents if intent is not None]
        if isinstance(rows, IntentRows):
            ratios = intent_metrics(rows.labels, labels)
        elif isinstance(model, TaggingModel):
            tags = [model.tags(*one) for one in answered]
            ratios = tagging_metrics(rows.tags, tags, rows.labels if labels else None, labels or None)
        else:
            raise TypeError(f"rows with tags need a tagging model, got {type(model).__name__}")
        names = ("accuracy",) if isinstance(rows, IntentRows) else ("span_f1", "intent_accuracy")
        main = [ratios[name].value for name in names if name in ratios]
        return Score(sum(main) / len(main), {f"valid_{name}": ratio.value for name, ratio in ratios.items()})

    return score
