"""A draft bundle against the model that it came from: parity, INT8 within its budget, quality, size, speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import ParityError
from models.manifest import Contents
from models.metrics import MAIN_METRIC
from models.model import Model, open_model
from models.session import OnnxSession
from registry import golden
from registry.bundle import MODEL, MODEL_FP16, MODEL_INT8, VARIANTS
from registry.evaluation import Parity, Quantization, Report, Variant, VariantName
from training.config import QuantizeConfig, TrainConfig
from training.data.splits import RankingRows, Splits
from training.evaluate import Answered, AnyRows, Evaluation, answer, judge
from training.fit import Fitted, Recorder, is_refitted
from training.latency import latency
from training.parity import compare
from training.quantization.half import to_fp16
from training.quantization.quantize import Source, choose, loss_measures
from training.slices import times_asked

FP16_MARGIN = 4
"""How many times the difference of FP16 from float32 another processor's FP16 may be off: it rounds elsewhere."""

_N_GOLDEN = 8
_FEWEST_RESAMPLES = 1  # where only the metrics count, not their intervals


class Proof:
    """A draft's files against the model they came from: parity, INT8 within its budget, quality, size, speed."""

    def __init__(
        self,
        directory: Path,
        contents: Contents,
        config: TrainConfig,
        splits: Splits[Any],
        recorder: Recorder,
        *,
        model: Model | None = None,
        is_timed: bool = True,
    ) -> None:
        """model: what `open_model` gives for these files, where it is open already. is_timed: measure latency."""
        self._contents = contents
        self._model: Model = model or open_model(directory, contents)
        self._is_timed = is_timed
        self._directory = directory
        self._config = config
        self._splits = splits
        self._recorder = recorder
        learned_from = {"train", "valid"} if is_refitted(config.training, splits) else {"train"}
        self._rows: dict[str, AnyRows] = {n: rows for n, rows in splits.named().items() if n not in learned_from}
        self._train_counts = _label_counts(splits.train)

    def run(self, fitted: Fitted) -> tuple[Report, dict[str, Evaluation]]:
        """Give the report, and the served variant's evaluation of each split; write both and golden.json."""
        valid = self._answer("float32", self._splits.valid)
        parity = self._parity(fitted, valid)
        evaluations: dict[VariantName, dict[str, Evaluation]] = {"float32": self._evaluate("float32", valid)}
        quantization = None
        settings: QuantizeConfig | None = getattr(self._config, "quantize", None)
        if settings is not None and settings.enabled:
            quantization, its = self._quantize(settings, valid)
            if its is not None:
                evaluations["int8"] = its
        fp16 = None
        if settings is not None and settings.fp16:
            fp16, its = self._halve(settings, valid)
            if its is not None:
                evaluations["fp16"] = its
        served: VariantName = "int8" if "int8" in evaluations else "float32"
        report = Report(
            family=self._contents.family,
            main_metric=self._main_metric,
            served_variant=served,
            variants={name: self._variant(name, its) for name, its in evaluations.items()},
            parity=parity,
            quantization=quantization,
            fp16=fp16,
        )
        report.save(self._directory)
        evaluations[served][report.known_by].predictions.save(self._directory)
        self._write_golden(valid)
        for evaluation in evaluations[served].values():
            for note in evaluation.notes:
                self._recorder.say(f"note: {note}")
        return report, evaluations[served]

    @property
    def _main_metric(self) -> str:
        return MAIN_METRIC[self._contents.family]

    def _session(self, variant: VariantName, n_threads: int) -> OnnxSession:
        return OnnxSession(self._directory / VARIANTS[variant], n_threads=n_threads)

    def _answer(self, variant: VariantName, rows: AnyRows) -> list[Answered]:
        return answer(self._model, self._contents, self._session(variant, 0).run, rows.requests())

    def _parity(self, fitted: Fitted, valid: list[Answered]) -> Parity:
        """Compare ONNX with its source on valid; ParityError beyond the configured tolerance."""
        bounds = self._config.export
        parity = compare(
            self._model,
            self._contents,
            self._splits.valid.requests(),
            fitted.outputs([one.encoded for one in valid]),
            valid,
            tolerance=bounds.tolerance,
        )
        if not parity.holds(bounds.tolerance, bounds.max_changed_decisions):
            raise ParityError(
                f"the ONNX export must answer as its source to {bounds.tolerance:g} with at most "
                f"{bounds.max_changed_decisions} changed decisions, got {parity.largest_difference:.3g} and "
                f"{parity.n_changed_decisions} of {parity.n_examples}; nothing was registered"
            )
        return parity

    def _quantize(
        self, settings: QuantizeConfig, float32: list[Answered]
    ) -> tuple[Quantization, dict[str, Evaluation] | None]:
        """Choose a recipe for INT8 by its loss on valid; where none is within the budget there is no file, and said so.

        The evaluations are those of the file, None without one.
        """
        chosen = choose(
            Source(
                path=self._directory / MODEL,
                model=self._model,
                contents=self._contents,
                train=self._splits.train.requests(),
                valid=self._splits.valid.requests(),
                answered=float32,
                metrics=self._metrics,
            ),
            self._directory / MODEL_INT8,
            settings,
            self._recorder,
            is_timed=self._is_timed,
        )
        if not chosen.is_kept:
            self._recorder.say(
                f"INT8 loses {chosen.trial.loss:.4f} of {chosen.measure} on valid, above its budget of "
                f"{settings.max_loss:g}: float32 is served"
            )
        quantization = Quantization(
            loss=chosen.trial.loss,
            max_loss=settings.max_loss,
            kept=chosen.is_kept,
            parity=self._compare(float32, chosen.answered),
            measure=chosen.measure,
            recipe=chosen.trial.recipe,
            trials=chosen.trials,
            float32_latency_ms=dict(chosen.float32_latency_ms),
        )
        return quantization, self._evaluate("int8", chosen.answered) if chosen.is_kept else None

    def _halve(
        self, settings: QuantizeConfig, float32: list[Answered]
    ) -> tuple[Parity | None, dict[str, Evaluation] | None]:
        """Write FP16 and weigh its loss on valid as INT8's; beyond the budget its file is removed, and said so."""
        to_fp16(self._directory / MODEL, self._directory / MODEL_FP16)
        valid = self._answer("fp16", self._splits.valid)
        before, after = self._metrics(float32), self._metrics(valid)
        loss = float(np.mean([before[name] - after[name] for name in loss_measures(self._contents, before)]))
        if not loss <= settings.max_loss:
            (self._directory / MODEL_FP16).unlink()
            self._recorder.say(f"FP16 loses {loss:.4f} on valid, above its budget of {settings.max_loss:g}: left out")
            return None, None
        return self._compare(float32, valid), self._evaluate("fp16", valid)

    def _compare(self, float32: Sequence[Answered], answered: Sequence[Answered]) -> Parity:
        return compare(
            self._model,
            self._contents,
            self._splits.valid.requests(),
            [one.outputs for one in float32],
            answered,
            tolerance=self._config.export.tolerance,
        )

    def _metrics(self, valid: Sequence[Answered]) -> Mapping[str, float]:
        return self._judge(self._splits.valid, valid, n_resamples=_FEWEST_RESAMPLES).quality.metrics

    def _write_golden(self, valid: Sequence[Answered]) -> None:
        """Write golden.json: the shortest, the longest and some other valid examples, through every variant."""
        pairs = zip(self._splits.valid.requests(), (one.encoded for one in valid), strict=True)
        by_length = sorted(pairs, key=lambda pair: pair[1].length)
        chosen = np.unique(np.linspace(0, len(by_length) - 1, num=_N_GOLDEN, dtype=np.int64))
        sessions = {
            name: OnnxSession(self._directory / file).run
            for name, file in VARIANTS.items()
            if (self._directory / file).exists()
        }
        golden.write(self._directory, self._contents.signature, [by_length[i] for i in chosen], sessions)

    def _evaluate(self, variant: VariantName, valid: Sequence[Answered]) -> dict[str, Evaluation]:
        evaluations: dict[str, Evaluation] = {}
        for split, rows in self._rows.items():
            self._recorder.progress(f"evaluate {variant}", len(evaluations), len(self._rows))
            answered = valid if split == "valid" else self._answer(variant, rows)
            evaluations[split] = self._judge(rows, answered, n_resamples=self._config.evaluate.n_resamples)
        self._recorder.progress(f"evaluate {variant}", len(self._rows), len(self._rows))
        return evaluations

    def _judge(self, rows: AnyRows, answered: Sequence[Answered], *, n_resamples: int) -> Evaluation:
        return judge(
            self._model,
            self._contents,
            rows,
            answered,
            config=self._config.evaluate.model_copy(update={"n_resamples": n_resamples}),
            seed=self._config.training.seed,
            train_counts=self._train_counts,
        )

    def _variant(self, name: VariantName, evaluations: Mapping[str, Evaluation]) -> Variant:
        return Variant(
            quality={split: evaluation.quality for split, evaluation in evaluations.items()},
            latency=latency(
                self._model,
                self._contents,
                self._session(name, 1).run,
                list(self._rows.values())[-1],
                seed=self._config.training.seed,
            )
            if self._is_timed and name != "fp16"
            else {},
            size_bytes=(self._directory / VARIANTS[name]).stat().st_size,
        )


def _label_counts(train: AnyRows) -> Mapping[str, int] | None:
    if isinstance(train, RankingRows):
        return times_asked(train)
    if train.labels is None:
        return None
    return Counter(train.labels)
