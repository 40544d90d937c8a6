"""One trained clinc150 model under several aims of its decision on scope: each chosen on valid, read on the test split.

python -m experiments.public_data.scope --data DIR --bundle DIR    writes results/clinc150_scope.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.report import Row, save
from models.manifest import Contents
from models.model import open_model
from models.session import OnnxSession
from registry.bundle import MODEL, Bundle, open_bundle
from registry.evaluation import Report
from training import intent
from training.calibrate import calibrated
from training.config import EvaluateConfig, ScopeConfig, parse
from training.evaluate import Answered, answer, judge
from training.terminal import terminal

HERE = Path(__file__).parent
AIMS: dict[str, dict[str, Any]] = {
    "2 false alarms per 1,000": {"aim": {"false_alarms_per_1000": 2}},
    "10 false alarms per 1,000": {"aim": {"false_alarms_per_1000": 10}},
    "20 false alarms per 1,000": {"aim": {"false_alarms_per_1000": 20}},
    "oos_recall 0.8": {"aim": {"oos_recall": 0.8}},
    "fewest errors, 3 % oos as in valid": {},
    "fewest errors, 18 % oos": {"oos_share": 0.18},
}
SHOWN = ("2 false alarms per 1,000", "10 false alarms per 1,000", "oos_recall 0.8")
"""Aims with rows of their own in the table; the others are in the result file."""
METRICS = ("accuracy_in_scope", "oos_recall", "accuracy")


def main() -> None:
    """Choose each aim's threshold on valid, as training does, and judge the served variant on test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds the folder clinc150")
    parser.add_argument("--bundle", type=Path, required=True, help="of a training by configs/intent_transformer.yaml")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    config = parse(bundle.manifest.config, "intent")
    valid_rows, test_rows = (
        intent.read_file(options.data / "clinc150" / f"{split}.jsonl", config)  # type: ignore[arg-type]
        for split in ("valid", "test")
    )
    contents = Contents.model_validate({name: getattr(bundle.manifest, name) for name in Contents.model_fields})
    valid = _answers(bundle, contents, OnnxSession(bundle.path / MODEL), valid_rows.texts)
    test = _answers(bundle, contents, OnnxSession(bundle.model_file()), test_rows.texts)
    served = f"{bundle.variant}, {Report.load(bundle.path).served.size_bytes / 1e6:.1f} MB"
    rows: list[Row] = []
    aims: dict[str, Any] = {}
    for name, settings in AIMS.items():
        with terminal() as screen:
            outputs = [one.outputs for one in valid]
            aimed = calibrated(contents, ScopeConfig.model_validate(settings), valid_rows, outputs, screen)
        model = open_model(bundle.path, aimed)
        decided = [
            Answered(one.encoded, one.outputs, model.decode(text, one.encoded, one.outputs))
            for text, one in zip(test_rows.texts, test, strict=True)
        ]
        quality = judge(model, aimed, test_rows, decided, config=EvaluateConfig(), seed=config.training.seed).quality
        aims[name] = {"scope": settings, "test": quality.metrics, "intervals": quality.intervals}
        print(name, {metric: round(value, 4) for metric, value in quality.metrics.items()})
        rows += [
            Row(
                data=f"clinc150, {name}",
                configuration="intent_transformer",
                metric=metric,
                value=quality.metrics[metric],
                low=quality.intervals[metric][0],
                high=quality.intervals[metric][1],
                seeds=[config.training.seed],
                seconds=0.0,
                served_as=served,
            )
            for metric in METRICS
            if name in SHOWN
        ]
    save(
        HERE / "results" / "clinc150_scope.json",
        rows,
        "python -m experiments.public_data.scope --data DIR --bundle DIR",
        note="one training, whose thresholds alone differ: seconds are 0",
        aims=aims,
    )


def _answers(bundle: Bundle, contents: Contents, session: OnnxSession, texts: Sequence[str]) -> list[Answered]:
    return answer(open_model(bundle.path, contents), contents, session.run, texts)


if __name__ == "__main__":
    main()
