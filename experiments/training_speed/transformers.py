"""The training loop of this project against one written by hand, on the same batches, in turns.

python -m experiments.training_speed.transformers --data DIR      DIR holds clinc150/train.jsonl

On one thread, by the processor's time: what else runs on the machine then counts little.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments import report
from models.batch import Encoded
from models.manifest import Signature, TensorSpec
from models.networks.transformer import TransformerNetwork, load_encoder
from models.text import SubwordEncoder
from training.batches import shuffled_batches
from training.config import NetworkTraining
from training.encoder import TOKENIZER, resolve
from training.fit import Checkpoint
from training.loop import Score, train
from training.losses import intent_loss

RESULTS = Path(__file__).parent / "results"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
SIGNATURE = Signature(
    inputs=tuple(TensorSpec(name=name, dtype="int64", shape=(-1, -1)) for name in ("input_ids", "attention_mask")),
    outputs=(TensorSpec(name="intent_logits", dtype="float32", shape=(-1, 151)),),
    layout="rows",
)
Times = list[float]


def main() -> None:
    """Time all three in turns and save the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = NetworkTraining(epochs=1, warmup=0.1)
    rows = [json.loads(line) for line in (options.data / "clinc150" / "train.jsonl").read_text().splitlines()]
    chosen = np.random.default_rng(0).choice(len(rows), size=options.steps * settings.batch_size, replace=False)
    labels = {label: place for place, label in enumerate(sorted({row["label"] for row in rows}))}
    targets = np.array([labels[rows[i]["label"]] for i in chosen])
    directory = resolve(ENCODER).directory
    reader = SubwordEncoder(directory / TOKENIZER, 128)
    examples = [reader.encode(rows[i]["text"]) for i in chosen]
    torch.manual_seed(0)
    network = TransformerNetwork(load_encoder(directory), n_labels=len(labels), n_tags=0, dropout=0.1)
    loops: dict[str, Callable[[nn.Module], Times]] = {
        "rankyard": lambda it: ours(it, examples, targets, settings),
        "by hand": lambda it: by_hand(it, examples, targets, settings, is_fused=False),
        "by hand, fused AdamW": lambda it: by_hand(it, examples, targets, settings, is_fused=True),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(options.turns):
        for name, loop in loops.items():
            times[name].append(statistics.median(loop(copy.deepcopy(network))))
            print(f"{name}: {1e3 * times[name][-1]:.0f} ms a step", flush=True)
    medians = {name: statistics.median(its) for name, its in times.items()}
    ratios = {name: medians["rankyard"] / median for name, median in medians.items() if name != "rankyard"}
    print({name: round(ratio, 3) for name, ratio in ratios.items()})
    by_turn = [mine / its for mine, its in zip(times["rankyard"], times["by hand, fused AdamW"], strict=True)]
    row = report.Row(
        data="clinc150",
        configuration="intent_transformer",
        metric="time of a training step, as a part of a hand-written loop's",
        value=ratios["by hand, fused AdamW"],
        low=min(by_turn),
        high=max(by_turn),
        seeds=[0],
        seconds=sum(map(sum, times.values())) * options.steps,
        served_as="",
        target=1.0,
        at_most=True,
    )
    report.save(
        RESULTS / "transformers.json",
        [row],
        f"python -m experiments.training_speed.transformers --data DIR --steps {options.steps} --turns {options.turns}",
        batch_size=settings.batch_size,
        step_cpu_ms={name: [1e3 * one for one in its] for name, its in times.items()},
        ratio_to={name: round(ratio, 3) for name, ratio in ratios.items()},
    )


class Clock:
    """A recorder that notes when each step ended."""

    def __init__(self) -> None:
        self.ends: Times = []

    def metrics(self, values: object, step: int) -> None:
        """Nothing."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Note the moment."""
        del stage, done, total
        self.ends.append(time.process_time())

    def say(self, sentence: str) -> None:
        """Nothing."""


def ours(
    network: TransformerNetwork, examples: Sequence[Encoded], targets: np.ndarray, settings: NetworkTraining
) -> Times:
    """Seconds of each step but the first, which warms up."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as nowhere:
        train(
            network,
            SIGNATURE,
            examples,
            intent_loss(targets),
            examples[:1],
            lambda _: Score(0.0, {}),
            settings,
            clock,
            Checkpoint(Path(nowhere), ""),
        )
    return np.diff(clock.ends).tolist()


def by_hand(
    network: TransformerNetwork,
    examples: Sequence[Encoded],
    targets: np.ndarray,
    settings: NetworkTraining,
    *,
    is_fused: bool,
) -> Times:
    """The loop of PyTorch's and transformers' tutorials: AdamW over all weights, clipping, linear warm-up and decay."""
    parameters = [
        {"params": network.encoder.parameters(), "lr": settings.learning_rate},
        {"params": network.intent_head.parameters(), "lr": settings.head_learning_rate},
    ]
    optimizer = torch.optim.AdamW(parameters, weight_decay=settings.weight_decay, fused=is_fused or None)
    batches = shuffled_batches(examples, settings.batch_size, (settings.seed, 0))
    n_warmup = round(settings.warmup * len(batches))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / n_warmup, (len(batches) - step) / (len(batches) - n_warmup))
    )
    ends, total = [], 0.0
    network.train()
    for batch in batches:
        ids = [torch.from_numpy(examples[index].arrays["input_ids"]) for index in batch]
        input_ids = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
        loss = functional.cross_entropy(network(input_ids, mask)["intent_logits"], torch.from_numpy(targets[batch]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        ends.append(time.process_time())
    return np.diff(ends).tolist()


if __name__ == "__main__":
    main()
