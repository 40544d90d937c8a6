"""Training a cross-encoder: text pairs in, a fine-tuned encoder that reads query and title together out.

Shapes: D documents of one list, T tokens of a pair.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.batch import Arrays, Encoded
from models.errors import ConfigError, DataError, InputError
from models.manifest import Contents, PairText, Signature, TensorSpec
from models.model import TOKENIZER
from models.networks.cross_encoder import CrossEncoderNetwork
from models.networks.transformer import load_encoder
from models.pairs import PairEncoder, trimmed
from models.ranking import RankingModel
from registry.bundle import MODEL
from training.config import CrossEncoderModel, RankingCrossEncoderConfig
from training.data.splits import RankingRows, Splits
from training.encoder import ResolvedEncoder, check_max_tokens, resolve
from training.export import network_to_onnx
from training.fit import Checkpoint, Recorder
from training.listwise import valid_score
from training.loop import predict, train
from training.ranking_losses import ranking_loss


@dataclass(frozen=True)
class FittedCrossEncoder:
    """A trained network, and the facts of its fit that are logged."""

    contents: Contents
    network: CrossEncoderNetwork
    tokenizer_json: Path
    facts: Mapping[str, float | int | str]

    def write(self, directory: Path) -> Contents:
        """Write `model.onnx` and `tokenizer.json`."""
        network_to_onnx(self.network, directory / MODEL)
        shutil.copyfile(self.tokenizer_json, directory / TOKENIZER)
        return self.contents

    def outputs(self, requests: Sequence[Encoded]) -> list[Arrays]:
        """PyTorch's own scores [D] of each request."""
        return predict(self.network, requests, self.contents.signature)

    def parameters(self) -> Mapping[str, float | int | str]:
        """Best epoch, epochs run, and the size of the network."""
        return self.facts


def fit(
    config: RankingCrossEncoderConfig, splits: Splits[RankingRows], recorder: Recorder, checkpoint: Checkpoint
) -> FittedCrossEncoder:
    """Fine-tune on parts of the lists whose documents differ in relevance, stopped early on valid NDCG@10.

    DataError where a query leaves a title no token.
    """
    training = config.training
    resolved = resolve(config.model.encoder)
    pairs = PairEncoder(
        resolved.directory / TOKENIZER, config.model.max_tokens, resolved.pad, is_apart=config.model.reads_apart
    )
    contents = _contents(config.model, resolved)
    network = _network(config, resolved, pairs)
    model = RankingModel(contents, pairs=pairs)
    encoded = {name: _encoded(model, rows) for name, rows in splits.named().items()}
    _say_cut(pairs, splits, recorder)
    parts, labels = _parts(splits.train, encoded["train"], training.list_size, training.seed)
    recorder.say(f"{len(splits.train)} queries, {sum(map(len, labels))} pairs, {len(parts)} parts of lists")
    facts = train(
        network,
        contents.signature,
        parts,
        ranking_loss(labels, training.loss),
        encoded["valid"],
        valid_score(splits.valid),
        training.loop,
        recorder,
        checkpoint,
    )
    return FittedCrossEncoder(contents, network, resolved.directory / TOKENIZER, facts)


def _network(config: RankingCrossEncoderConfig, resolved: ResolvedEncoder, pairs: PairEncoder) -> CrossEncoderNetwork:
    model = config.model
    if pairs.separator < 0:
        raise ConfigError(
            f"the tokenizer of a cross-encoder must end a query with a token of its own, that of {model.encoder} does "
            "not; choose another model.encoder",
            field="model.encoder",
        )
    torch.manual_seed(config.training.seed)
    encoder = load_encoder(resolved.directory)
    check_max_tokens(model.max_tokens, model.encoder, encoder)
    if model.reads_apart and "position_ids" not in inspect.signature(encoder.forward).parameters:
        raise ConfigError(
            f"model.reads_apart needs an encoder that takes positions, {model.encoder} does not; leave it out",
            field="model.reads_apart",
        )
    return CrossEncoderNetwork(encoder, separator=pairs.separator, dropout=model.dropout, reads_apart=model.reads_apart)


def _encoded(model: RankingModel, rows: RankingRows) -> list[Encoded]:
    encoded = []
    for query_id, request in zip(rows.query_ids, rows.lists, strict=True):
        try:
            encoded.append(model.encode(request))
        except InputError as error:
            raise DataError(f"query {query_id} of {rows.file}: {error.message}; or raise model.max_tokens") from error
    return encoded


def _say_cut(pairs: PairEncoder, splits: Splits[RankingRows], recorder: Recorder) -> None:
    for rows in splits.named().values():
        n_cut = sum(pairs.n_cut(request.text, request.texts or ()) for request in rows.lists)
        if n_cut:
            n_pairs = sum(len(request.ids) for request in rows.lists)
            recorder.say(f"{n_cut} of the {n_pairs} titles of {rows.file} are cut to fit model.max_tokens")


def _parts(
    train: RankingRows, encoded: Sequence[Encoded], list_size: int, seed: int
) -> tuple[list[Encoded], list[NDArray[np.float32]]]:
    """Cut every list at random into parts of nearly equal size, at most `list_size` documents, and their labels."""
    generator = np.random.default_rng(seed)
    parts, labels = [], []
    for one, labels_D in zip(encoded, train.labels, strict=True):
        n_parts = -(-len(labels_D) // list_size)
        for rows in np.array_split(generator.permutation(len(labels_D)), n_parts):
            parts.append(trimmed(one, rows))
            labels.append(labels_D[rows])
    return parts, labels


def _contents(model: CrossEncoderModel, resolved: ResolvedEncoder) -> Contents:
    return Contents(
        family="ranking",
        signature=Signature(
            inputs=(
                TensorSpec(name="input_ids", dtype="int64", shape=(-1, -1), pad=resolved.pad),
                TensorSpec(name="attention_mask", dtype="int64", shape=(-1, -1)),
            ),
            outputs=(TensorSpec(name="score", dtype="float32", shape=(-1,)),),
            layout="concat",
        ),
        pair_text=PairText(max_tokens=model.max_tokens, is_apart=model.reads_apart),
        encoder=resolved.origin,
    )
