"""Distillation: a network that learns to answer as a trained one does, or as several do, and takes their place.

The teacher is a bundle or several, asked as they are served. It labels the training texts, texts made of them
(`training.augment`) and unlabelled queries; the student is trained on those answers (Hinton et al. 2015, "Distilling
the knowledge in a neural network"), sequences of tags as a whole (Wang et al. 2020, "Structure-level knowledge
distillation for multilingual sequence labeling", the posterior).

Shapes: N examples, B examples of a batch, T tokens, W words, C intent labels, K tags.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from models.batch import Arrays, Encoded
from models.errors import DataError, InputError
from models.gazetteer import Gazetteer
from models.intent import IntentModel
from models.manifest import Calibration, EncoderOrigin, SubwordText
from models.metrics import intent_metrics, tagging_metrics
from models.model import TOKENIZER
from models.networks.crf import Crf
from models.networks.intent import IntentNetwork
from models.networks.student import student_encoder
from models.networks.transformer import GazetteerEmbedding, TransformerNetwork, load_encoder
from models.tagging import TaggingModel
from models.text import SubwordEncoder
from training.augment import augment, neighbours_of
from training.calibrate import calibration_facts, check_scope
from training.config import IntentStudentConfig, JointStudentTraining, StudentConfig, StudentModel
from training.data.splits import IntentRows, Splits, TaggingRows
from training.encoder import check_max_tokens, resolve
from training.fit import Checkpoint, Recorder
from training.loop import Loss, Score, train
from training.losses import weighted
from training.network import Draft, FittedNetwork, answered_labels, indicators, settled, signature
from training.teacher import Chances, Teacher, TextModel


def fit(
    config: StudentConfig, splits: Splits[IntentRows] | Splits[TaggingRows], recorder: Recorder, checkpoint: Checkpoint
) -> FittedNetwork:
    """Train a student of the bundles in the directories `config.teacher`, stopped early on the valid rows."""
    teacher = Teacher.open(config)
    _refuse_unknown_labels(teacher, splits.train)
    _refuse_unread(teacher, splits.train)
    if isinstance(config, IntentStudentConfig) and isinstance(splits.train, IntentRows):
        check_scope(config.scope, splits)
    drafted = _draft(config, teacher)
    model = drafted.tagger() if drafted.contents.tags else IntentModel(drafted.contents, drafted.reader)
    encoded = drafted.encode(splits, model.encode)
    texts = list(splits.train.requests())
    found = _more_texts(config, splits, teacher, texts)
    more = [text for text in found if _is_read(text, (model, *teacher.models))]
    if len(more) < len(found):
        n_refused = len(found) - len(more)
        recorder.say(f"note: {n_refused} unlabelled or generated texts are longer than is read; left out")
    texts += more
    examples = [*encoded["train"], *map(model.encode, more)]
    n_asked = len(teacher.bundles) * len(texts)
    chances = teacher.chances(
        texts, config.training.temperature, lambda n_done: recorder.progress("teacher", n_done, n_asked)
    )
    facts = train(
        drafted.network,
        drafted.contents.signature,
        examples,
        _loss(config, drafted, examples, chances),
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
            f"the teacher must know every label of {rows.file}, {teacher.name} does not know "
            f"{', '.join(unknown[:5])}; train it again on these rows first",
            field="teacher",
        )


def _refuse_unread(teacher: Teacher, rows: IntentRows | TaggingRows) -> None:
    if n_unread := sum(not _is_read(text, teacher.models) for text in rows.requests()):
        raise DataError(
            f"a teacher must read every row of {rows.file}, {n_unread} are too long for {teacher.name} or another one; "
            "train it with a higher model.max_tokens or shorten them",
            field="teacher",
        )


def _is_read(text: str, models: Sequence[TextModel]) -> bool:
    try:
        for model in models:
            model.encode(text)
    except InputError:
        return False
    return True


def _draft(config: StudentConfig, teacher: Teacher) -> Draft:
    """The untrained student; its bundle says of itself what the teacher's does, so that one can replace the other."""
    contents = teacher.contents
    text = contents.text
    if not isinstance(text, SubwordText):
        raise TypeError(f"a teacher that was opened reads tokens, got {text!r}")
    torch.manual_seed(config.training.seed)
    its = _encoder(config.model, teacher, text.max_tokens)
    n_hidden = int(its.network.config.hidden_size)
    terms = GazetteerEmbedding(len(contents.gazetteer), n_hidden, 0.0) if contents.gazetteer else None
    n_labels, n_tags, dropout = len(contents.labels or ()), len(contents.tags or ()), config.model.dropout
    if contents.family == "intent":
        network: TransformerNetwork = IntentNetwork(its.network, n_labels=n_labels, dropout=dropout)
    else:
        network = TransformerNetwork(
            its.network,
            n_labels=n_labels,
            n_tags=n_tags,
            dropout=dropout,
            crf=_transitions(teacher),
            gazetteer=terms,
        )
    # Temperature and scope are the student's own, settled once it is trained.
    own: dict[str, Any] = {
        "encoder": its.origin,
        "signature": signature(network.input_names, n_labels, n_tags, its.pad),
        "scope": None,
        "calibration": Calibration(),
    }
    return Draft(
        network,
        contents.model_copy(update=own),
        its.tokenizer_json,
        SubwordEncoder(its.tokenizer_json, text.max_tokens, text.max_windows),
        Gazetteer.load(teacher.bundles[0].path) if contents.gazetteer else None,
    )


@dataclass(frozen=True)
class _Encoder:
    """What a student begins with: a network that reads tokens, and what gives it them."""

    network: PreTrainedModel
    tokenizer_json: Path
    pad: int
    origin: EncoderOrigin | None = None


def _encoder(model: StudentModel, teacher: Teacher, max_tokens: int) -> _Encoder:
    """The pretrained encoder that is named, or a small one that begins with what the teacher knows of each token."""
    if model.encoder is None:
        pad = teacher.contents.signature.inputs[0].pad
        sizes = model.model_dump(exclude={"kind", "encoder"})
        vectors_VD = torch.from_numpy(teacher.token_vectors)
        network = student_encoder(vectors_VD, **sizes, n_positions=max_tokens, pad=pad)
        return _Encoder(network, teacher.bundles[0].path / TOKENIZER, pad)
    resolved = resolve(model.encoder)
    network = load_encoder(resolved.directory)
    check_max_tokens(max_tokens, model.encoder, network, "the teacher's ")
    return _Encoder(network, resolved.directory / TOKENIZER, resolved.pad, resolved.origin)


def _transitions(teacher: Teacher) -> Crf | None:
    """The teacher's own, kept as they are: a student of its chances needs no others."""
    if teacher.transitions is None:
        return None
    crf = Crf(teacher.contents.tags or ())
    with torch.no_grad():
        crf.transitions.copy_(torch.from_numpy(teacher.transitions))
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


def _loss(config: StudentConfig, drafted: Draft, examples: Sequence[Encoded], chances: Chances) -> Loss:
    """Towards the teacher's answers to all its questions."""
    losses: list[tuple[float, Loss]] = []
    temperature, crf = config.training.temperature, drafted.network.crf
    if chances.tags is not None:
        losses.append((1.0, soft_tag_loss(crf, examples, chances.tags, temperature)))
    if chances.intents is not None:
        joint = config.training.intent_loss_weight if isinstance(config.training, JointStudentTraining) else 1.0
        soft = soft_labels_loss if drafted.contents.gives_several_labels else soft_intent_loss
        losses.append((joint, soft(chances.intents, temperature)))
    return weighted(losses)


def soft_intent_loss(chances_NC: NDArray[np.float32], temperature: float) -> Loss:
    """Cross-entropy of `intent_logits` [B, C] to the teacher's chances, as `soft_cross_entropy`, mean over texts."""

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        return soft_cross_entropy(outputs["intent_logits"], torch.from_numpy(chances_NC[chosen]), temperature)

    return loss


def soft_labels_loss(chances_NC: NDArray[np.float32], temperature: float) -> Loss:
    """T^2 x the binary cross-entropy of sigmoid(logits / T) [B, C] to the chances, mean over texts and labels."""

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        logits_BC, wanted_BC = outputs["intent_logits"] / temperature, torch.from_numpy(chances_NC[chosen])
        return temperature**2 * functional.binary_cross_entropy_with_logits(logits_BC, wanted_BC)

    return loss


def soft_tag_loss(
    crf: Crf | None, examples: Sequence[Encoded], chances: Sequence[NDArray[np.float16]], temperature: float
) -> Loss:
    """Cross-entropy of `tag_logits` [B, T, K] at words' first tokens to the teacher's chances, mean over words.

    chances: [W, K] of every example. Of whole sequences where there is a `crf`, as `Crf.loss_to`, otherwise of each
    word by itself, as `soft_cross_entropy`. A word without tokens is not asked for. A text in windows is as many rows
    of the batch.
    """
    places = [_places_of_words(one) for one in examples]

    def loss(outputs: Mapping[str, Tensor], chosen: NDArray[np.int64]) -> Tensor:
        starts = np.cumsum([0, *(examples[index].n_windows for index in chosen[:-1])])
        texts = [(start, index) for start, index in zip(starts, chosen, strict=True) if len(places[index][0])]
        if not texts:
            return outputs["tag_logits"].sum() * 0.0
        rows = np.concatenate([start + places[index][1] for start, index in texts])
        firsts = np.concatenate([places[index][2] for _, index in texts])
        logits = outputs["tag_logits"][rows, firsts]
        its = [chances[index][places[index][0]] for _, index in texts]
        wanted = torch.from_numpy(np.concatenate(its).astype(np.float32))
        if crf is None:
            return soft_cross_entropy(logits, wanted, temperature)
        lengths = list(map(len, its))
        wanted_BWK, logits_BWK = (
            pad_sequence(list(torch.split(part, lengths)), batch_first=True) for part in (wanted, logits)
        )
        return crf.loss_to(wanted_BWK, logits_BWK, torch.tensor(lengths), temperature)

    return loss


def _places_of_words(encoded: Encoded) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Every word that has a token, its window, and its first token there."""
    first_W = np.array(encoded.first_pieces, dtype=np.int64)
    window_W = np.array(encoded.word_windows or np.zeros_like(first_W), dtype=np.int64)
    words = np.flatnonzero(first_W >= 0)
    return words, window_W[words], first_W[words]


def soft_cross_entropy(logits: Tensor, chances: Tensor, temperature: float) -> Tensor:
    """Mean over rows of T^2 x the cross-entropy of softmax(logits / T) to the chances.

    Hinton et al. 2015, section 2: T^2 keeps the gradient's size, whatever T.
    """
    return temperature**2 * functional.cross_entropy(logits / temperature, chances)


def _scorer(
    model: TextModel, rows: IntentRows | TaggingRows, encoded: Sequence[Encoded]
) -> Callable[[list[Arrays]], Score]:
    """Judge the valid rows: `accuracy`, or the mean of `span_f1` and, where joint, `intent_accuracy`."""
    texts = rows.requests()

    def score(outputs: list[Arrays]) -> Score:
        labels = answered_labels(model.decode_batch(texts, encoded, outputs))
        if isinstance(rows, IntentRows):
            ratios = intent_metrics(rows.labels, labels)
        elif isinstance(model, TaggingModel):
            tags = model.tags(encoded, outputs)
            ratios = tagging_metrics(rows.tags, tags, rows.labels if labels else None, labels or None)
        else:
            raise TypeError(f"rows with tags need a tagging model, got {type(model).__name__}")
        names = ("accuracy",) if isinstance(rows, IntentRows) else ("span_f1", "intent_accuracy")
        main = [ratios[name].value for name in names if name in ratios]
        return Score(sum(main) / len(main), {f"valid_{name}": ratio.value for name, ratio in ratios.items()})

    return score
