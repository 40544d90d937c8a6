import io

import pytest

from registry.evaluation import Parity, Quantization, RecipeTrial, Report, Variant
from training.quantization import report as recipe_report


def report(*, kept=True, timed=True):
    parity = Parity(largest_difference=0.1, n_changed_decisions=1, n_examples=10)
    ms = {"one_core_batch_1": 1.5, "one_core_batch_32": 40.0, "all_cores_batch_32": 20.0} if timed else {}
    trials = [
        RecipeTrial(recipe=name, size_bytes=23_000_000, loss=loss, losses={}, error=0.02, batch_effect=0, latency_ms=ms)
        for name, loss in (("static", 0.004), ("by_token", 0.001), ("static_per_tensor", 0.4))
    ]
    quantization = Quantization(
        loss=0.001, max_loss=0.003, kept=kept, parity=parity, measure="accuracy", recipe="by_token",
        trials=tuple(trials), float32_latency_ms={call: 2 * value for call, value in ms.items()},
    )  # fmt: skip
    variants = {"float32": Variant(quality={}, latency={}, size_bytes=91_000_000)}
    return Report(
        family="intent", main_metric="accuracy", served_variant="float32", variants=variants, parity=parity,
        quantization=quantization,
    )  # fmt: skip


def test_the_table_has_a_row_for_float32_and_every_recipe_and_marks_the_one_that_is_kept():
    lines = recipe_report.table(report()).splitlines()
    assert lines[0].startswith(
        "INT8 recipes on valid: by_token is kept. Loss: float32 minus INT8 of accuracy, budget 0.3"
    )
    assert lines[4] == "| float32 | 91.0 |  |  |  | 3.00 | 80.00 | 40.00 |"
    assert lines[5] == "| static | 23.0 | +0.40 | 0.0200 | 0.0e+00 | 1.50 | 40.00 | 20.00 |"
    assert lines[6].startswith("| **by_token** |")
    assert len(lines) == 8


def test_nothing_is_marked_where_none_is_kept_and_nothing_shown_where_none_was_tried():
    assert "none is kept" in recipe_report.table(report(kept=False))
    assert "**" not in recipe_report.table(report(kept=False))
    bare = report().model_copy(update={"quantization": None})
    assert recipe_report.table(bare) == ""
    assert recipe_report.picture(bare) is None


@pytest.mark.parametrize("timed", [True, False])
def test_the_picture_needs_timings(timed):
    figure = recipe_report.picture(report(timed=timed))
    assert (figure is not None) == timed
    if figure is not None:
        file = io.BytesIO()
        figure.savefig(file, format="png")
        names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert [name.split()[1] for name in names] == ["static:", "by_token:", "static_per_tensor:", "float32:"]
        assert names[2] == "3  static_per_tensor: 40.0 ms, +40.00, 23 MB"
        highest = max(float(points.get_offsets()[0][1]) for points in figure.axes[0].collections)
        assert highest == pytest.approx(0.9)  # three budgets of 0.3
