"""Training a neural ranker over numeric features: candidate lists in, a network over rows or whole lists out.

Shapes: N documents of all lists, F features, D documents of one list.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.batch import Arrays, Encoded
from models.errors import DataError
from models.manifest import Contents, Signature, TensorSpec
from models.metrics import ranking_metrics
from models.networks.listwise import ListwiseNetwork
from models.ranking import RankingModel
from registry.bundle import MODEL
from training.config import ListwiseModel, RankingListwiseConfig
from training.data.splits import RankingRows, Splits
from training.export import OPSET, quiet
from training.fit import Checkpoint, Recorder
from training.loop import Score, predict, train
from training.ranking_losses import ranking_loss


@dataclass(frozen=True)
class FittedListwise:
    """A trained network, and the facts of its fit that are logged."""

    contents: Contents
    network: ListwiseNetwork
    facts: Mapping[str, float | int | str]

    def write(self, directory: Path) -> Contents:
        """Write `model.onnx`."""
        _export(self.network, self.contents.signature, directory / MODEL)
        return self.contents

    def outputs(self, requests: Sequence[Encoded]) -> list[Arrays]:
        """PyTorch's own scores [D] of each request."""
        return predict(self.network, requests, self.contents.signature)

    def parameters(self) -> Mapping[str, float | int | str]:
        """Best epoch, epochs run, and the size of the network."""
        return self.facts


def fit(
    config: RankingListwiseConfig, splits: Splits[RankingRows], recorder: Recorder, checkpoint: Checkpoint
) -> FittedListwise:
    """Train on the lists whose documents differ in relevance, stopped early on valid NDCG@10."""
    contents = _contents(config.model, splits.train.feature_names)
    model = RankingModel(contents)
    taught = informative(splits.train, recorder)
    encoded = [model.encode(request) for request in taught.lists]
    features_NF = np.concatenate([one.arrays["features"] for one in encoded]).astype(np.float32)
    training = config.training
    torch.manual_seed(training.seed)
    network = ListwiseNetwork(
        features_NF,
        normalisation=config.model.normalisation,
        hidden=config.model.hidden,
        dropout=config.model.dropout,
        n_attention_layers=config.model.n_attention_layers,
        n_heads=config.model.n_heads,
    )
    recorder.say(f"{len(taught)} queries, {len(features_NF)} documents, {features_NF.shape[1]} features")
    facts = train(
        network,
        contents.signature,
        encoded,
        ranking_loss(taught.labels, training.loss),
        [model.encode(request) for request in splits.valid.lists],
        valid_score(splits.valid),
        training.loop,
        recorder,
        checkpoint,
    )
    return FittedListwise(contents, network, facts)


def informative(train: RankingRows, recorder: Recorder) -> RankingRows:
    """Leave out, and count, the lists whose documents are all of one relevance: no order of theirs is better."""
    chosen = np.flatnonzero([len(set(labels_D.tolist())) > 1 for labels_D in train.labels])
    if n_left_out := len(train) - len(chosen):
        recorder.say(f"{n_left_out} of the {len(train)} queries of {train.file} have documents of one relevance only")
    if not len(chosen):
        raise DataError(f"{train.file} must have a query whose documents differ in relevance, it has none")
    return train.take(chosen)


def valid_score(valid: RankingRows) -> Callable[[list[Arrays]], Score]:
    """Judge the scores [D] of the valid lists by NDCG@10."""

    def score(outputs: list[Arrays]) -> Score:
        scores = [np.asarray(one["score"], dtype=np.float32).reshape(-1) for one in outputs]
        metrics = {name: ratio.value for name, ratio in ranking_metrics(valid.labels, scores).items()}
        return Score(metrics["ndcg@10"], {f"valid_{name}": value for name, value in metrics.items()})

    return score


def _contents(model: ListwiseModel, names: tuple[str, ...]) -> Contents:
    attends = model.n_attention_layers > 0
    features = TensorSpec(name="features", dtype="float32", shape=(-1, -1, len(names)) if attends else (-1, len(names)))
    mask = TensorSpec(name="mask", dtype="float32", shape=(-1, -1))
    return Contents(
        family="ranking",
        signature=Signature(
            inputs=(features, mask) if attends else (features,),
            outputs=(TensorSpec(name="score", dtype="float32", shape=(-1, -1) if attends else (-1,)),),
            layout="rows" if attends else "concat",
        ),
        features=names,
    )


class _Plain(nn.Module):
    """The network with its output as a tensor, as the exporter wants it."""

    def __init__(self, network: ListwiseNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        score: Tensor = self.network(*inputs)["score"]
        return score


def _export(network: ListwiseNetwork, signature: Signature, path: Path) -> None:
    """Write the graph for any number of lists and documents."""
    generator = torch.Generator().manual_seed(0)
    probes, shapes = [], []
    names = ("lists", "documents") if signature.layout == "rows" else ("documents",)
    sizes = dict(zip(names, map(torch.export.Dim, names), strict=True))
    for spec in signature.inputs:
        probe_shape = [3 + axis if size < 0 else size for axis, size in enumerate(spec.shape)]
        probes.append(torch.rand(probe_shape, generator=generator))
        shapes.append({axis: sizes[name] for axis, name in enumerate(names)})
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Plain(network).eval(),
            tuple(probes),
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in signature.inputs],
            output_names=["score"],
            dynamic_shapes=(tuple(shapes),),
            verbose=False,
        )
    if program is None:
        raise AssertionError("torch.onnx.export gives a program when no file is named")
    program.save(str(path))
