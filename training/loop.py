"""The training loop of every network, on CPU: AdamW, warm-up and decay, early stopping, checkpoints.

Shapes: N examples, B examples of a batch, T tokens, C intent labels, K tags.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.batch import Arrays, Encoded
from models.errors import RefusedError
from models.manifest import Signature
from models.networks.protocol import Network
from models.networks.vocabulary import UsedRows
from training import checkpoint as checkpoints
from training.batches import answers_of, shuffled_batches, tensors
from training.config import LoopTraining, Precision
from training.fit import Checkpoint, Recorder
from training.processes import Peers

Loss = Callable[[Mapping[str, Tensor], NDArray[np.int64]], Tensor]
"""From a batch's outputs and the indices [B] of its examples to the mean loss, a scalar; see `training.losses`."""

_PREDICT_TOKENS = 2048
_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True)
class Score:
    """How good the valid answers are: `main` decides which epoch is best, `metrics` are for the curves."""

    main: float
    metrics: Mapping[str, float]


def train(
    network: Network,
    signature: Signature,
    examples: Sequence[Encoded],
    loss: Loss,
    valid: Sequence[Encoded],
    score: Callable[[list[Arrays]], Score] | None,
    settings: LoopTraining,
    recorder: Recorder,
    checkpoint: Checkpoint,
) -> dict[str, float | int | str]:
    """Train `network` in place on `examples` [N], leave the weights of its best epoch in it, and give the facts.

    score: of the answers to `valid`; None where nothing is held out: the last epoch is the best then.
    A training that goes on from a checkpoint ends, on the same machine, with the weights of one that never stopped; so
    does one that had ended, whose checkpoint stays until somebody clears it. Where `training.processes` has opened a
    group, all of it calls this, and the processes share every batch. KeyboardInterrupt leaves a checkpoint behind.
    RefusedError where the loss is no longer a number.
    """
    with _used_rows(network, (*examples, *valid), signature):
        training = _Training(network, signature, examples, loss, settings, recorder, checkpoint)

        def judged() -> Score:
            return Score(training.epoch, {}) if score is None else score(predict(network, valid, signature))

        try:
            training.restore()
            training.run(judged)
        except KeyboardInterrupt:
            training.save()
            raise
        network.load_state_dict(training.best_weights)
    network.eval()
    return {
        "best_epoch": training.best_epoch,
        "epochs_run": training.epoch,
        "n_parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def predict(network: Network, requests: Sequence[Encoded], signature: Signature) -> list[Arrays]:
    """Outputs of each request, in order: `intent_logits` [C], `tag_logits` [T, K] for its own T tokens alone.

    `tag_logits` of a text in windows are [windows, T, K], its `intent_logits` the mean over them.
    """
    network.eval()

    def run(batch: Sequence[Encoded]) -> Arrays:
        return {name: tensor.numpy() for name, tensor in network(*tensors(batch, signature)).items()}

    with torch.inference_mode():
        return answers_of(run, requests, signature, _PREDICT_TOKENS)


class _Training:
    """One training: where it is (`epoch`, `batch`, `step`, all counted from 0) and what it has found so far."""

    def __init__(
        self,
        network: Network,
        signature: Signature,
        examples: Sequence[Encoded],
        loss: Loss,
        settings: LoopTraining,
        recorder: Recorder,
        checkpoint: Checkpoint,
    ) -> None:
        self._network = network
        self._signature = signature
        self._examples = examples
        self._loss = loss
        self._settings = settings
        self._recorder = recorder
        self._checkpoint = checkpoint
        self._optimizer = _optimizer(network, settings)
        self._n_batches = math.ceil(len(examples) / settings.batch_size)
        self._n_steps = self._n_batches * settings.epochs
        self._peers = Peers.found()
        self._shared = self._peers.wrap(network)
        self._in_bfloat16 = computes_in_bfloat16(settings.precision)
        self._saved_at_s = time.monotonic()
        self.epoch = self.batch = self.step = 0
        self.loss_sum = 0.0
        self.best_epoch, self.best_main, self.n_stale = 0, -math.inf, 0
        self.best_weights: dict[str, Tensor] = {}

    def run(self, score: Callable[[], Score]) -> None:
        """Train until the last epoch, or until `patience` epochs brought nothing better."""
        while self.epoch < self._settings.epochs and self.n_stale < self._settings.patience:
            self._run_epoch()
            valid = self._peers.first(score)
            metrics = {"train_loss": self.loss_sum / self._n_batches, **valid.metrics}
            with _uninterrupted():
                self._finish_epoch(valid.main)
            self._recorder.metrics(metrics, self.epoch)
            self.save()

    def save(self) -> None:
        """Write a checkpoint of this very moment; of several processes the first one does."""
        if self._peers.rank:
            return
        checkpoints.save(
            self._checkpoint,
            {
                "network": self._network.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "random": torch.get_rng_state(),
                "position": [self.epoch, self.batch, self.step, self.loss_sum],
                "best": [self.best_epoch, self.best_main, self.n_stale],
                "best_weights": self.best_weights,
            },
        )
        self._saved_at_s = time.monotonic()

    def restore(self) -> None:
        """Go on from the checkpoint where that is asked for; say why where there is none to go on from."""
        state, reason = self._peers.first(self._found)
        if state is None:
            if reason:
                self._recorder.say(reason)
            self._diverge()
            return
        self._network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.epoch, self.batch, self.step, self.loss_sum = state["position"]
        self.best_epoch, self.best_main, self.n_stale = state["best"]
        self.best_weights = state["best_weights"]
        self._recorder.say(f"training goes on from step {self.step} of {self._n_steps}")
        self._diverge()

    def _found(self) -> tuple[checkpoints.State | None, str]:
        return checkpoints.load(self._checkpoint) if self._checkpoint.resume else (None, "")

    def _diverge(self) -> None:
        """Let no two processes drop the same units."""
        if self._peers.rank:
            torch.manual_seed(hash((self._settings.seed, self._peers.rank, self.step)))

    def _run_epoch(self) -> None:
        batches = shuffled_batches(self._examples, self._settings.batch_size, (self._settings.seed, self.epoch))
        self._network.train()
        for chosen in batches[self.batch :]:
            with _uninterrupted():
                self.loss_sum += self._learn(chosen)
                self.batch += 1
                self.step += 1
            self._recorder.progress("training", self.step, self._n_steps)
            if time.monotonic() - self._saved_at_s >= self._settings.checkpoint_every_s:
                self.save()

    def _learn(self, chosen: NDArray[np.int64]) -> float:
        """Make one step on the examples `chosen` [B]; gives their mean loss."""
        rate = _rate(self.step, self._n_steps, self._settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        examples = [self._examples[index] for index in chosen]
        part = [self._examples[index] for index in self._peers.part(chosen)]
        with torch.autocast("cpu", torch.bfloat16, enabled=self._in_bfloat16):
            answers = self._shared(*tensors(part, self._signature))
        outputs = self._peers.whole({name: answer.float() for name, answer in answers.items()}, len(chosen))
        loss = self._loss(_whole_texts(outputs, examples), chosen)
        if not math.isfinite(loss.item()):
            raise RefusedError(
                f"the loss must stay a number, at step {self.step + 1} it is {loss.item()}; "
                f"lower training.learning_rate ({self._settings.learning_rate})"
            )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._network.parameters(), _GRADIENT_NORM)
        self._optimizer.step()
        return loss.item()

    def _finish_epoch(self, main: float) -> None:
        """Keep the weights where no epoch was better: of equal ones the latest, whose learning rate was lowest."""
        self.n_stale = 0 if main > self.best_main else self.n_stale + 1
        if main >= self.best_main:
            self.best_epoch, self.best_main = self.epoch + 1, main
            self.best_weights = {name: tensor.detach().clone() for name, tensor in self._network.state_dict().items()}
        self.epoch, self.batch, self.loss_sum = self.epoch + 1, 0, 0.0


def computes_in_bfloat16(precision: Precision) -> bool:
    """Whether matrix products are computed in 16 bits; `auto`: where the processor does so itself (AVX512-BF16)."""
    return precision == "bfloat16" or (precision == "auto" and torch.cpu._is_avx512_bf16_supported())


def _whole_texts(outputs: Mapping[str, Tensor], examples: Sequence[Encoded]) -> Mapping[str, Tensor]:
    """Answers about whole texts [B, C], of a text in windows the mean over them as in `models.batch.split`."""
    windows = [example.n_windows for example in examples]
    if max(windows) == 1:
        return outputs
    return {
        name: torch.stack([part.mean(0) for part in torch.split(answer, windows)]) if answer.ndim == 2 else answer
        for name, answer in outputs.items()
    }


def _optimizer(network: Network, settings: LoopTraining) -> torch.optim.Optimizer:
    """AdamW with a peak rate for the encoder and one for the heads; biases and layer norms do not decay.

    `fused` takes a third of the default's time on CPU, and is as repeatable.
    """
    groups = []
    for is_encoder, peak in ((True, settings.learning_rate), (False, settings.head_learning_rate)):
        for is_matrix, decay in ((True, settings.weight_decay), (False, 0.0)):
            parameters = [
                parameter
                for name, parameter in network.named_parameters()
                if name.startswith("encoder.") == is_encoder and (parameter.ndim > 1) == is_matrix
            ]
            groups.append({"params": parameters, "peak": peak, "weight_decay": decay})
    return torch.optim.AdamW(groups, fused=True)


def _rate(step: int, n_steps: int, warmup: float) -> float:
    """Part of the peak learning rate at `step` (from 0): rises over warmup x n_steps, then falls towards 0."""
    n_warmup = round(warmup * n_steps)
    if step < n_warmup:
        return (step + 1) / n_warmup
    return (n_steps - step) / max(1, n_steps - n_warmup)


@contextmanager
def _used_rows(network: Network, encoded: Sequence[Encoded], signature: Signature) -> Iterator[None]:
    """Train only those rows of a pretrained vocabulary that `encoded` uses, where the network has one."""
    encoder = getattr(network, "encoder", None)
    if encoder is None:
        yield
        return
    padding = [spec.pad for spec in signature.inputs if spec.name == "input_ids"]
    tokens = np.unique(np.concatenate([padding, *(request.arrays["input_ids"].ravel() for request in encoded)]))
    whole = cast("nn.Embedding", encoder.get_input_embeddings())
    embedding = UsedRows(whole, torch.from_numpy(tokens.astype(np.int64)))
    encoder.set_input_embeddings(embedding)
    yield
    encoder.set_input_embeddings(embedding.restored())


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C until a step is whole: a training stopped within one could not be continued."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt
