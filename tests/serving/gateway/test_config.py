import pytest

from models.config import read, validate
from models.errors import ConfigError
from serving.gateway.config import GatewayConfig


def test_the_shipped_configuration_states_the_defaults():
    assert validate(GatewayConfig, read("gateway")) == GatewayConfig()


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
        ({"runtime": {"kind": "torch"}}, "runtime.kind"),
    ],
)
def test_an_impossible_setting_is_refused_with_its_path(change, says):
    with pytest.raises(ConfigError, match=says):
        validate(GatewayConfig, change)
