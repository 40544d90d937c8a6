import pytest

from models.config import read, validate
from models.errors import ConfigError
from serving.gateway.config import GatewayConfig
from serving.gateway.gateway import make_runtime


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
        (
            {"phases": [{"model": "a/1", "keep": 9}, {"model": "b/1"}, {"model": "c/1", "keep": 10}]},
            r"keep no more than came from the phase before, they keep \[9, 10\]",
        ),
        (
            {"limits": {"max_body_bytes": 1000, "max_bodies_bytes": 999}},
            r"at least max_body_bytes \(1000\), .* got 999",
        ),
        *(
            ({"runtime": {"triton_url": url}}, f"the HOST:PORT of a gRPC endpoint, .* got '{url}'")
            for url in ("http://triton:8001", "triton", ":8001", "triton:", "triton:grpc", "triton:65536")
        ),
        ({"runtime": {"kind": "torch"}}, "runtime.kind"),
        ({"runtime": {"fallback": False, "hedge_share": 0.1}}, "hedges are answered by the fallback"),
        ({"runtime": {"hedge_share": 1.5}}, "runtime.hedge_share"),
        ({"runtime": {"scorers": ["xgboost"]}}, "scorers must name onnx, which scores what no other can"),
        ({"runtime": {"scorers": ["onnx", "onnx"]}}, "each one once"),
        ({"runtime": {"scorers": ["treelite"]}}, r"runtime.scorers\[0\]"),
    ],
)
def test_an_impossible_setting_is_refused_with_its_path(change, says):
    with pytest.raises(ConfigError, match=says):
        validate(GatewayConfig, change)


@pytest.mark.parametrize("field", [{"variant": "int8"}, {"scorers": ["onnx"]}, {"n_alone_threads": 2}])
def test_what_only_this_process_can_do_is_refused_for_triton(field):
    runtime = {"kind": "triton", "triton_url": "127.0.0.1:1", **field}
    (name,) = field
    with pytest.raises(ConfigError, match=rf"runtime\.{name} must be left out"):
        make_runtime(GatewayConfig.model_validate({"runtime": runtime}))
