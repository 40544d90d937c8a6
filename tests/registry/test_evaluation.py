import json
import math

import pytest
from pydantic import ValidationError

from models.errors import BundleError
from registry.evaluation import EVALUATION, Latency, Parity, Quality, Report, Slice, Variant


def report():
    quality = Quality(
        n=10,
        metrics={"accuracy": 0.9},
        intervals={"accuracy": (0.8, 1.0)},
        slices={"class=a": Slice(n=4, value=0.75, interval=(0.25, 1.0))},
    )
    latency = Latency(n_calls=50, total_p50_ms=1.2, total_p95_ms=2.0, model_p50_ms=1.0, model_p95_ms=1.5)
    variant = Variant(quality={"valid": quality, "test": quality}, latency={"batch_1": latency}, size_bytes=1000)
    return Report(
        family="intent",
        main_metric="accuracy",
        served_variant="float32",
        variants={"float32": variant},
        parity=Parity(largest_difference=1e-6, n_changed_decisions=0, n_examples=10),
    )


def test_what_was_saved_is_loaded(tmp_path):
    report().save(tmp_path)
    assert Report.load(tmp_path) == report()
    assert Report.load(tmp_path).served.quality["test"].metrics == {"accuracy": 0.9}


def test_a_model_is_known_by_its_test_split_or_by_valid_without_one():
    quality = report().served.quality
    only_valid = report().served.model_copy(update={"quality": {"valid": quality["valid"]}})
    assert report().known_by == "test"
    assert report().model_copy(update={"variants": {"float32": only_valid}}).known_by == "valid"


def test_the_file_is_plain_json(tmp_path):
    report().save(tmp_path)
    plain = json.loads((tmp_path / EVALUATION).read_text())
    assert plain["variants"]["float32"]["quality"]["test"]["intervals"]["accuracy"] == [0.8, 1.0]


def test_an_undefined_figure_cannot_be_reported():
    with pytest.raises(ValidationError):
        Parity(largest_difference=math.nan, n_changed_decisions=0, n_examples=1)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(BundleError, match=r"must hold evaluation\.json"):
        Report.load(tmp_path)


def test_a_file_that_breaks_a_rule_is_refused_with_the_place(tmp_path):
    report().save(tmp_path)
    plain = json.loads((tmp_path / EVALUATION).read_text())
    plain["variants"]["float32"]["size_bytes"] = "huge"
    (tmp_path / EVALUATION).write_text(json.dumps(plain))
    with pytest.raises(BundleError, match=r"`variants\.float32\.size_bytes`"):
        Report.load(tmp_path)


def test_parity_holds_within_both_bounds_only():
    parity = Parity(largest_difference=1e-4, n_changed_decisions=1, n_examples=5)
    assert parity.holds(1e-4, 1)
    assert not parity.holds(9e-5, 1)
    assert not parity.holds(1e-4, 0)
