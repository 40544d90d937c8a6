import pytest

from models.config import read, validate
from models.errors import ConfigError
from serving.gateway.config import GatewayConfig


def test_the_shipped_configuration_states_the_defaults():
    assert validate(GatewayConfig, read("gateway")) == GatewayConfig()


def fused(**fuse):
    return {"phases": [{"model": "a/1"}, {"model": "b/1", "fuse": fuse}]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch": {"max_batch_size": 0}}, "batch.max_batch_size"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": float("nan")}, "deadline_ms"),
        ({"deadline_ms": 2_000, "max_deadline_ms": 1_000}, "deadline_ms must be at most max_deadline_ms"),
        ({"models": {"intnet": "a@champion"}}, "models.intnet is not a key"),
        ({"models": {"ranking": "a/1"}, "phases": [{"model": "b/1"}]}, "leave models.ranking out"),
        ({"phases": [{"model": "a/1", "budget_ms": 5}]}, "the first phase has no order to fall back to"),
        ({"phases": [{"model": "a/1"}, {"model": "b/1", "keep": 0}]}, r"phases\[1\].keep"),
        ({"phases": [{"model": "a/1", "fuse": {"method": "reciprocal_rank"}}]}, "the first phase has none before it"),
        (fused(method="linear", weights=[1.0]), r"phases\[1\].fuse must have 2 weights, one a phase so far, it has 1"),
        (fused(method="linear", weights=[0, 0]), r"phases\[1\].fuse must have a weight above 0"),
        (fused(method="linear", weights=[-1, 2]), r"phases\[1\].fuse.linear.weights\[0\]"),
        (fused(method="reciprocal_rank", weights=[1, 1]), r"phases\[1\].fuse.reciprocal_rank.weights"),
        ({"runtime": {"kind": "torch"}}, "runtime.kind"),
        ({"runtime": {"scorers": ["xgboost"]}}, "scorers must name onnx, which scores what no other can"),
        ({"runtime": {"scorers": ["onnx", "onnx"]}}, "each one once"),
        ({"runtime": {"scorers": ["treelite"]}}, r"runtime.scorers\[0\]"),
    ],
)
def test_an_impossible_setting_is_refused_with_its_path(change, says):
    with pytest.raises(ConfigError, match=says):
        validate(GatewayConfig, change)
