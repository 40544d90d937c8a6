"""Fine-tuned networks: from rows and a pretrained encoder to what the line exports, for intent and for tagging.

Shapes: N examples, T tokens of a text, W words.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.answers import Reading
from models.batch import Arrays, Encoded
from models.chain import TRANSITIONS, TagChain
from models.errors import DataError, InputError
from models.gazetteer import Gazetteer
from models.intent import IntentModel, answered_label
from models.manifest import OOS_LABEL, Contents, Signature, SubwordText, TensorSpec
from models.metrics import intent_metrics, tagging_metrics
from models.model import TOKENIZER
from models.networks.crf import Crf
from models.networks.intent import IntentNetwork
from models.networks.sentence import SentenceNetwork
from models.networks.transformer import GazetteerEmbedding, IntentPrior, TransformerNetwork, load_encoder
from models.scope import DISTANCE_OUTPUT
from models.tagging import TaggingModel
from models.text import SubwordEncoder
from registry.bundle import MODEL
from training.calibrate import calibrated, calibration_facts, check_scope
from training.config import (
    IntentTransformerConfig,
    NetworkTraining,
    ScopeConfig,
    TaggerModel,
    TaggingTransformerConfig,
    TransformerModel,
)
from training.data.labels import implied_labels, known_labels, known_tags
from training.data.splits import IntentRows, Splits, TaggingRows
from training.encoder import check_max_tokens, resolve
from training.export import network_to_onnx
from training.fit import Checkpoint, Recorder, Refitting, is_refitted
from training.intent_prior import penalties
from training.loop import Score, predict, train
from training.losses import IGNORED, crf_loss, intent_loss, labels_loss, tag_loss, weighted
from training.swap import with_swapped

_ANY_LENGTH = 2**20

_UNSEEN_TERMS = 0.3
"""Chance that a type of terms goes unseen in a text while training."""


@dataclass(frozen=True)
class Draft:
    """An untrained network and what its bundle will say of it."""

    network: TransformerNetwork
    contents: Contents
    tokenizer_json: Path
    reader: SubwordEncoder
    gazetteer: Gazetteer | None = None

    def tagger(self) -> TaggingModel:
        """The model that decodes the network's answers as it stands now."""
        crf, tags = self.network.crf, self.contents.tags or ()
        chain = None if crf is None else TagChain(tags, crf.transitions.detach().numpy())
        return TaggingModel(self.contents, self.reader, chain, self.gazetteer)

    def encode(self, splits: Splits[IntentRows] | Splits[TaggingRows], encode: Encode) -> dict[str, list[Encoded]]:
        """Encode every split, before anything is trained; DataError names the file, how many rows, and the longest."""
        return {name: self._encode(rows, encode) for name, rows in splits.named().items()}

    def _encode(self, rows: IntentRows | TaggingRows, encode: Encode) -> list[Encoded]:
        encoded: list[Encoded] = []
        refused: list[str] = []
        for text in rows.requests():
            try:
                encoded.append(encode(text))
            except InputError:
                refused.append(text)
        if refused:
            any_length = SubwordEncoder(self.tokenizer_json, _ANY_LENGTH)
            longest = max(any_length.encode(text).length for text in refused)
            raise DataError(
                f"a row must have at most {self._max_tokens} tokens; {rows.file} has {len(refused)} longer rows, the "
                f"longest of {longest}; raise model.max_tokens or shorten them",
                field="model.max_tokens",
            )
        return encoded

    @property
    def _max_tokens(self) -> int:
        return self.contents.text.max_tokens if isinstance(self.contents.text, SubwordText) else 0


Encode = Callable[[str], Encoded]


@dataclass(frozen=True)
class FittedNetwork:
    """A trained network, and the facts of its fit that are logged."""

    draft: Draft
    facts: Mapping[str, float | int | str]

    def write(self, directory: Path) -> Contents:
        """Write `model.onnx`, `tokenizer.json`, and the transitions and terms of a tagger that has them."""
        network_to_onnx(self.draft.network, directory / MODEL)
        shutil.copyfile(self.draft.tokenizer_json, directory / TOKENIZER)
        if self.draft.network.crf is not None:
            np.save(directory / TRANSITIONS, self.draft.network.crf.transitions.detach().numpy(), allow_pickle=False)
        if self.draft.gazetteer is not None:
            self.draft.gazetteer.save(directory)
        return self.draft.contents

    def outputs(self, requests: Sequence[Encoded]) -> list[Arrays]:
        """PyTorch's own logits of each request, without the padded positions that `split` of a batch may leave."""
        return predict(self.draft.network, requests, self.draft.contents.signature)

    def parameters(self) -> Mapping[str, float | int | str]:
        """Best epoch, epochs run, and the size of the network."""
        return self.facts


def _draft(
    model: TransformerModel,
    training: NetworkTraining,
    *,
    labels: Sequence[str] = (),
    tags: Sequence[str] = (),
    gazetteer: Gazetteer | None = None,
    intent_prior: IntentPrior | None = None,
) -> Draft:
    """Load the pretrained encoder and put untrained heads on it, seeded; tags, where given, make it a tagger."""
    resolved = resolve(model.encoder)
    torch.manual_seed(training.seed)
    encoder = load_encoder(resolved.directory)
    check_max_tokens(model.max_tokens, model.encoder, encoder)
    terms = None
    if gazetteer is not None:
        terms = GazetteerEmbedding(len(gazetteer.types), int(encoder.config.hidden_size), _UNSEEN_TERMS)
    crf = Crf(tags) if isinstance(model, TaggerModel) and model.crf else None
    network = TransformerNetwork(
        encoder,
        n_labels=len(labels),
        n_tags=len(tags),
        dropout=model.dropout,
        crf=crf,
        gazetteer=terms,
        intent_prior=intent_prior,
    )
    contents = Contents(
        family="tagging" if tags else "intent",
        signature=signature(network.input_names, len(labels), len(tags), resolved.pad),
        labels=tuple(labels) or None,
        tags=tuple(tags) or None,
        has_transitions=crf is not None,
        gazetteer=None if gazetteer is None else gazetteer.types,
        text=SubwordText(max_tokens=model.max_tokens, max_windows=model.max_windows),
        encoder=resolved.origin,
    )
    tokenizer_json = resolved.directory / TOKENIZER
    reader = SubwordEncoder(tokenizer_json, model.max_tokens, model.max_windows)
    return Draft(network, contents, tokenizer_json, reader, gazetteer)


def fit_intent(
    config: IntentTransformerConfig, splits: Splits[IntentRows], recorder: Recorder, checkpoint: Checkpoint
) -> FittedNetwork:
    """Fine-tune an encoder with an intent head, stopped early on the accuracy of the valid rows, and calibrate it."""
    check_scope(config.scope, splits)
    settings, valid = config.training, splits.valid
    labels = known_labels(splits.train.each_label(), splits.train.file)
    drafted, network = _intent_draft(config, labels, label_sets=splits.train.label_sets)
    model = IntentModel(drafted.contents, drafted.reader)
    signature = drafted.contents.signature
    encoded = drafted.encode(splits, model.encode)
    examples, label_sets = list(encoded["train"]), list(splits.train.sets())
    if settings.label_names:
        named = [label for label in labels if label != OOS_LABEL]
        examples += [model.encode(label.replace("_", " ")) for label in named]
        label_sets += [(label,) for label in named]
    is_label_NC = indicators(label_sets, labels)
    if settings.cosine_scale is not None:
        means_CH = class_means(network, examples, is_label_NC, signature)
        network.start_from(means_CH, gives_several=drafted.contents.gives_several_labels)

    def score(outputs: list[Arrays]) -> Score:
        readings = model.decode_batch(valid.texts, encoded["valid"], outputs)
        ratios = intent_metrics(valid.labels, answered_labels(readings))
        return Score(ratios["accuracy"].value, {f"valid_{name}": ratio.value for name, ratio in ratios.items()})

    if drafted.contents.gives_several_labels:
        loss = labels_loss(is_label_NC, label_smoothing=settings.label_smoothing)
    else:
        loss = intent_loss(is_label_NC.argmax(axis=1), label_smoothing=settings.label_smoothing)
    facts = train(network, signature, examples, loss, encoded["valid"], score, settings, recorder, checkpoint)
    contents = settled(drafted, config.scope, examples, is_label_NC, valid, encoded["valid"], recorder)
    return FittedNetwork(replace(drafted, contents=contents), facts | calibration_facts(contents))


def settled(
    drafted: Draft,
    scope: ScopeConfig | None,
    examples: Sequence[Encoded],
    is_label_NC: NDArray[np.bool_],
    valid: IntentRows,
    encoded_valid: Sequence[Encoded],
    recorder: Recorder,
) -> Contents:
    """Contents of a trained IntentNetwork with what its answers to `valid` settle: temperature, and scope if asked.

    examples [N], is_label_NC: what the class means are of, where the decision on scope measures distances from them.
    """
    network, contents = drafted.network, drafted.contents
    if not isinstance(network, IntentNetwork):
        raise TypeError(f"an intent network is settled, got {type(network).__name__}")
    if scope is not None and "distance" in scope.scores:
        means_CH = class_means(network, examples, is_label_NC, contents.signature)
        network.measure_from(means_CH[[label != OOS_LABEL for label in contents.labels or ()]])
        contents = contents.model_copy(update={"signature": _with_distance(contents.signature)})
    outputs = predict(network, encoded_valid, contents.signature)
    return calibrated(contents, scope, valid, outputs, recorder)


def _intent_draft(
    config: IntentTransformerConfig, labels: Sequence[str], *, label_sets: Sequence[Sequence[str]] | None
) -> tuple[Draft, IntentNetwork]:
    drafted = _draft(config.model, config.training, labels=labels)
    network = IntentNetwork(
        drafted.network.encoder,
        n_labels=len(labels),
        dropout=config.model.dropout,
        cosine_scale=config.training.cosine_scale,
    )
    several = {"gives_several_labels": True, "implied_labels": implied_labels(label_sets)} if label_sets else {}
    contents = drafted.contents.model_copy(update=several)
    return replace(drafted, network=network, contents=contents), network


def fit_tagging(
    config: TaggingTransformerConfig,
    splits: Splits[TaggingRows],
    gazetteer: Gazetteer | None,
    recorder: Recorder,
    checkpoint: Checkpoint,
) -> FittedNetwork:
    """Fine-tune an encoder with a tag head, and an intent head where rows have labels.

    Stopped early on the valid rows' span_f1, or on the mean of span_f1 and intent_accuracy. With `refit` a network is
    then trained from the start on train and valid together, for as many epochs as were best: it is the model.
    """
    chosen = _fit_tagging(config, splits, splits.valid, gazetteer, recorder, checkpoint)
    if not is_refitted(config.training, splits):
        return chosen
    n_epochs = chosen.facts["best_epoch"]
    training = config.training.model_copy(update={"epochs": n_epochs})
    together = replace(splits, train=splits.train.joined(splits.valid), test=None)
    recorder.say(f"{n_epochs} epochs once more, on {len(together.train)} rows of train and valid")
    fitted = _fit_tagging(
        config.model_copy(update={"training": training}),
        together,
        None,
        gazetteer,
        Refitting(recorder),
        checkpoint.of_refit(),
    )
    kept = {name: chosen.facts[name] for name in ("best_epoch", "epochs_run")}
    return replace(fitted, facts={**fitted.facts, **kept, "refitted_rows": len(together.train)})


def _fit_tagging(
    config: TaggingTransformerConfig,
    splits: Splits[TaggingRows],
    valid: TaggingRows | None,
    gazetteer: Gazetteer | None,
    recorder: Recorder,
    checkpoint: Checkpoint,
) -> FittedNetwork:
    """Train on `splits.train`, stopped early by `valid`; without it the last epoch is kept."""
    rows = splits.train
    labels = known_labels(rows.labels, rows.file) if rows.labels is not None else ()
    tags = known_tags(rows.tags, rows.file)
    prior = IntentPrior(torch.from_numpy(penalties(rows, labels, tags))) if config.model.intent_prior else None
    drafted = _draft(config.model, config.training, labels=labels, tags=tags, gazetteer=gazetteer, intent_prior=prior)
    encoded = drafted.encode(splits, drafted.tagger().encode)
    learned, examples = rows, encoded["train"]
    if n_swapped := config.training.n_swapped:
        model, seed = drafted.tagger(), config.training.seed
        learned, examples = with_swapped(rows, examples, model, n_swapped, seed, recorder)
    smoothing = config.training.label_smoothing
    targets, crf = _targets(examples, learned.tags, tags), drafted.network.crf
    losses = [(1.0, tag_loss(targets, label_smoothing=smoothing) if crf is None else crf_loss(crf, targets))]
    if learned.labels is not None:
        intents = intent_loss(_label_indices(learned.labels, labels), label_smoothing=smoothing)
        losses.append((config.training.intent_loss_weight, intents))
    facts = train(
        drafted.network,
        drafted.contents.signature,
        examples,
        weighted(losses),
        encoded["valid"] if valid is not None else (),
        None if valid is None else partial(_tagging_score, drafted, valid, encoded["valid"]),
        config.training,
        recorder,
        checkpoint,
    )
    return FittedNetwork(drafted, facts | {"n_examples": len(examples)})


def _tagging_score(drafted: Draft, valid: TaggingRows, encoded: Sequence[Encoded], outputs: Sequence[Arrays]) -> Score:
    """How well a network tags as it stands now, and names the intent where it does."""
    model = drafted.tagger()
    predicted_tags = model.tags(encoded, outputs)
    names_intents = drafted.contents.labels is not None
    predicted_labels = _labels_of(model.decode_batch(valid.requests(), encoded, outputs)) if names_intents else None
    ratios = tagging_metrics(valid.tags, predicted_tags, valid.labels, predicted_labels)
    main = [ratios[name].value for name in ("span_f1", "intent_accuracy") if name in ratios]
    return Score(sum(main) / max(1, len(main)), {f"valid_{name}": ratio.value for name, ratio in ratios.items()})


def _label_indices(labels: Sequence[str], known: Sequence[str]) -> NDArray[np.int64]:
    """Give the place in `known` of every label [N]."""
    places = {label: index for index, label in enumerate(known)}
    return np.array([places[label] for label in labels], dtype=np.int64)


def _labels_of(readings: Sequence[Reading]) -> list[str]:
    """Give the label of every reading; "" where a reading has no intent."""
    return [reading.intent.label if reading.intent is not None else "" for reading in readings]


def answered_labels(readings: Sequence[Reading]) -> list[str]:
    """Give what every reading's intent says in one text, as `IntentRows.labels` has it."""
    return [answered_label(reading.intent) for reading in readings if reading.intent is not None]


def indicators(label_sets: Sequence[Sequence[str]], labels: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each label [C] is one of the example's [N]."""
    places = {label: place for place, label in enumerate(labels)}
    is_label_NC = np.zeros((len(label_sets), len(labels)), dtype=np.bool_)
    for row, label_set in enumerate(label_sets):
        is_label_NC[row, [places[label] for label in label_set]] = True
    return is_label_NC


def class_means(
    network: TransformerNetwork, examples: Sequence[Encoded], is_label_NC: NDArray[np.bool_], signature: Signature
) -> torch.Tensor:
    """Mean of the unit vectors of each class's examples, of length 1 again: [C, H]."""
    sentences = SentenceNetwork(network.encoder)
    vectors_NH = np.stack([one["vector"] for one in predict(sentences, examples, signature)]).astype(np.float32)
    sums_CH = is_label_NC.T.astype(np.float32) @ vectors_NH
    return torch.from_numpy(sums_CH / np.linalg.norm(sums_CH, axis=1, keepdims=True))


def _with_distance(signature: Signature) -> Signature:
    distance = TensorSpec(name=DISTANCE_OUTPUT, dtype="float32", shape=(-1,))
    return signature.model_copy(update={"outputs": (*signature.outputs, distance)})


def _targets(
    encoded: Sequence[Encoded], tags: Sequence[Sequence[str]], known: Sequence[str]
) -> list[NDArray[np.int64]]:
    """For every text [N] the tag of each of its tokens [T]: a word's tag at its first token, IGNORED elsewhere.

    [windows, T] for a text in windows, a word's tag in the window in which it is read.
    """
    places = {tag: index for index, tag in enumerate(known)}
    targets = []
    for one, tags_W in zip(encoded, tags, strict=True):
        target = np.full(one.arrays["input_ids"].shape, IGNORED, dtype=np.int64)
        by_window = np.atleast_2d(target)
        windows = one.word_windows or (0,) * len(tags_W)
        for first, window, tag in zip(one.first_pieces, windows, tags_W, strict=True):
            if first >= 0:
                by_window[window, first] = places[tag]
        targets.append(target)
    return targets


def signature(input_names: Sequence[str], n_labels: int, n_tags: int, pad: int) -> Signature:
    """Inputs and outputs of a network that reads tokens, `pad` the one that fills a row up."""
    outputs = []
    if n_labels:
        outputs.append(TensorSpec(name="intent_logits", dtype="float32", shape=(-1, n_labels)))
    if n_tags:
        outputs.append(TensorSpec(name="tag_logits", dtype="float32", shape=(-1, -1, n_tags)))
    return Signature(
        inputs=tuple(
            TensorSpec(name=name, dtype="int64", shape=(-1, -1), pad=pad if name == "input_ids" else 0)
            for name in input_names
        ),
        outputs=tuple(outputs),
        layout="rows",
    )
