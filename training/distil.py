"""Distillation: a small network that learns to answer as a trained one does, and takes its place in the line.

The teacher is a bundle, asked as it is served. It labels the training texts, texts made of them (`training.augment`)
and unlabelled queries; the student is trained on those answers (Hinton et al. 2015, "Distilling the knowledge in a
neural network").

Shapes: N examples, B examples of a batch, T tokens, W words, C intent labels, K tags, V tokens of the vocabulary, D
dimensions of the teacher's embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.batch import Arrays, Encoded
from models.chain import TRANSITIONS
from models.errors import DataError, InputError
from models.gazetteer import Gazetteer
from models.intent import IntentModel
from models.manifest import Calibration, SubwordText
from models.metrics import intent_metrics, tagging_metrics
from models.model import TOKENIZER
from models.networks.crf import Crf
from models.networks.intent import IntentNetwork
from models.networks.student import student_encoder
from models.networks.transformer import GazetteerEmbedding, TransformerNetwork
from models.tagging import TaggingModel
from models.text import SubwordEncoder
from training.augment import augment, neighbours_of
from training.calibrate import calibration_facts, check_scope
from training.config import IntentStudentConfig, JointStudentTraining, StudentConfig
from training.data.splits import IntentRows, Splits, TaggingRows
from training.fit import Checkpoint, Recorder
from training.loop import Loss, Score, train
from training.losses import weighted
from training.network import Draft, FittedNetwork, answered_labels, indicators, settled
from training.teacher import Teacher, TextModel


def fit(
    config: StudentConfig, splits: Splits[IntentRows] | Splits[TaggingRows], recorder: Recorder, checkpoint: Checkpoint
) -> FittedNetwork:
    """Train a student of the bundle in the directory `config.teacher`, stopped early on the valid rows."""
    teacher = Teacher.open(config)
    _refuse_unknown_labels(teacher, splits.train)
    if isinstance(config, IntentStudentConfig) and isinstance(splits.train, IntentRows):
        check_scope(config.scope, splits)
    drafted = _draft(config, teacher)
    model = drafted.tagger() if drafted.contents.tags else IntentModel(drafted.contents, drafted.reader)
    encoded = drafted.encode(splits, teacher.model.encode)
    texts = list(splits.train.requests())
    more, n_refused = _encode_those_that_fit(_more_texts(config, splits, teacher, texts), teacher.model)
    if n_refused:
        recorder.say(f"note: {n_refused} unlabelled or generated texts are longer than the teacher reads; left out")
    examples = [*encoded["train"], *more]
    answers = teacher.answer(examples, lambda n_done: recorder.progress("teacher", n_done, len(examples)))
    facts = train(
        drafted.network,
        drafted.contents.signature,
        examples,
        _loss(config, examples, answers, gives_several_labels=drafted.contents.gives_several_labels),
        encoded["valid"],
        _scorer(model, splits.valid, encoded["valid"]),
        config.training,
        recorder,
        checkpoint,
    )
    facts["n_examples"] = len(examples)
    if isinstance(config, IntentStudentConfig) and isinstance(splits.valid, IntentRows):
        is_label_NC = indicators(list(splits.train.sets()), drafted.contents.labels or ())
        contents = settled(
            drafted, config.scope, encoded["train"], is_label_NC, splits.valid, encoded["valid"], recorder
        )
        return FittedNetwork(replace(drafted, contents=contents), facts | calibration_facts(contents))
    return FittedNetwork(drafted, facts)


def _refuse_unknown_labels(teacher: Teacher, rows: IntentRows | TaggingRows) -> None:
    if rows.labels is None or teacher.contents.labels is None:
        return
    labels = rows.each_label() if isinstance(rows, IntentRows) else rows.labels
    if unknown := sorted(set(labels) - set(teacher.contents.labels)):
        raise DataError(
            f"the teacher must know every label of {rows.file}, {teacher.bundle.manifest.name} does not know "
            f"{', '.join(unknown[:5])}; train it again on these rows first",
            field="teacher",
        )


def _draft(config: StudentConfig, teacher: Teacher) -> Draft:
    """The untrained student; its bundle says of itself what the teacher's does, so that one can replace the other."""
    contents = teacher.contents
    terms = GazetteerEmbedding(len(contents.gazetteer), config.model.n_hidden, 0.0) if contents.gazetteer else None
    text, pad = contents.text, contents.signature.inputs[0].pad
    if not isinstance(text, SubwordText):
        raise TypeError(f"a teacher that was opened reads tokens, got {text!r}")
    torch.manual_seed(config.training.seed)
    encoder = student_encoder(
        torch.from_numpy(teacher.token_vectors),
        **config.model.model_dump(exclude={"kind"}),
        n_positions=text.max_tokens,
        pad=pad,
    )
    n_labels, dropout = len(contents.labels or ()), config.model.dropout
    if contents.family == "intent":
        network: TransformerNetwork = IntentNetwork(encoder, n_labels=n_labels, dropout=dropout)
    else:
        network = TransformerNetwork(
            encoder,
            n_labels=n_labels,
            n_tags=len(contents.tags or ()),
            dropout=dropout,
            crf=_transitions(teacher) if contents.has_transitions else None,
            gazetteer=terms,
        )
    # Temperature and scope are the student's own, settled once it is trained.
    logits = tuple(spec for spec in contents.signature.outputs if spec.name in network.output_names)
    own: dict[str, Any] = {"encoder": None, "signature": contents.signature.model_copy(update={"outputs": logits})}
    if contents.family == "intent":
        own |= {"scope": None, "calibration": Calibration()}
    tokenizer_json = teacher.bundle.path / TOKENIZER
    return Draft(
        network,
        contents.model_copy(update=own),
        tokenizer_json,
        SubwordEncoder(tokenizer_json, text.max_tokens, text.max_windows),
        Gazetteer.load(teacher.bundle.path) if contents.gazetteer else None,
    )


def _transitions(teacher: Teacher) -> Crf:
    """The teacher's own, kept as they are: a student of its logits needs no others."""
    crf = Crf(teacher.contents.tags or ())
    with torch.no_grad():
        crf.transitions.copy_(torch.from_numpy(np.load(teacher.bundle.path / TRANSITIONS, allow_pickle=False)))
    return crf.requires_grad_(False)


def _more_texts(
    config: StudentConfig, splits: Splits[IntentRows] | Splits[TaggingRows], teacher: Teacher, texts: Sequence[str]
) -> list[str]:
    """Unlabelled queries that are not training texts, then texts made of the training texts."""
    known = set(texts)
    logged = [] if splits.unlabelled is None else [text for text in splits.unlabelled.texts if text not in known]
    if not config.training.n_generated:
        return logged
    neighbours = neighbours_of(texts, teacher.tokenizer, teacher.token_vectors)
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


def _loss(
    config: StudentConfig, examples: Sequence[Encoded], answers: Sequence[Arrays], *, gives_several_labels: bool
) -> Loss:
    """Towards the teacher's answers to all its questions."""
    losses: list[tuple[float, Loss]] = []
    temperature = config.training.temperature
    if "tag_logits" in answers[0]:
        losses.append((1.0, soft_tag_loss(examples, [one["tag_logits"] for one in answers], temperature)))
    if "intent_logits" in answers[0]:
        joint = config.training.intent_loss_weight if isinstance(config.training, JointStudentTraining) else 1.0
        logits_NC = np.stack([one["intent_logits"] for one in answers])
        soft = soft_labels_loss if gives_several_labels else soft_intent_loss
        losses.append((joint, soft(logits_NC, temperature)))
    return weighted(losses)


def soft_intent_loss(teacher_NC: NDArray[np.generic], temperature: float) -> Loss:
    """Cross-entropy of `intent_logits` [B, C] to the teacher's, as `soft_cross_entropy`, mean over texts."""
    answers_NC = torch.from_numpy(np.asarray(teacher_NC, dtype=np.float32))

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        return soft_cross_entropy(outputs["intent_logits"], answers_NC[chosen], temperature)

    return loss


def soft_labels_loss(teacher_NC: NDArray[np.generic], temperature: float) -> Loss:
    """T^2 x the binary cross-entropy of sigmoid(logits / T) [B, C] to the teacher's, mean over texts and labels."""
    wanted_NC = (torch.from_numpy(np.asarray(teacher_NC, dtype=np.float32)) / temperature).sigmoid()

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        logits_BC = outputs["intent_logits"] / temperature
        return temperature**2 * functional.binary_cross_entropy_with_logits(logits_BC, wanted_NC[chosen])

    return loss


def soft_tag_loss(examples: Sequence[Encoded], teacher: Sequence[NDArray[np.generic]], temperature: float) -> Loss:
    """The same of `tag_logits` [B, T, K] at the first token of every word, mean over words.

    teacher: [T, K] of every example, [windows, T, K] of a text in windows, which is as many rows of the batch.
    """
    places = [_places(one) for one in examples]
    # Half precision: these answers are the largest thing in a distillation's memory.
    answers = [
        np.asarray(logits.reshape(-1, *logits.shape[-2:])[window_W, first_W], dtype=np.float16)
        for logits, (window_W, first_W) in zip(teacher, places, strict=True)
    ]

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        starts = np.cumsum([0, *(examples[index].n_windows for index in chosen[:-1])])
        rows = np.concatenate([start + places[index][0] for start, index in zip(starts, chosen, strict=True)])
        firsts = np.concatenate([places[index][1] for index in chosen])
        wanted = torch.from_numpy(np.concatenate([answers[index] for index in chosen]).astype(np.float32))
        return soft_cross_entropy(outputs["tag_logits"][rows, firsts], wanted, temperature)

    return loss


def _places(encoded: Encoded) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Window and first token [W] of every word that has a token."""
    first_W = np.array(encoded.first_pieces, dtype=np.int64)
    window_W = np.array(encoded.word_windows or np.zeros_like(first_W), dtype=np.int64)
    return window_W[first_W >= 0], first_W[first_W >= 0]


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
        labels = answered_labels([model.decode(*one) for one in answered])
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
