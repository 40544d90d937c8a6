from pathlib import Path

import pytest
from pydantic import Field

from models.config import Config, read, shipped, validate
from models.errors import ConfigError


class Phase(Config):
    model: str
    budget_ms: int = Field(default=30, ge=1)


class Sample(Config):
    name: str
    phases: tuple[Phase, ...] = ()


def test_every_mistake_of_a_file_is_reported_at_once_with_its_path() -> None:
    raw = {"nam": "x", "phases": [{"model": "a"}, {"model": "b", "budget_ms": 0}]}
    with pytest.raises(ConfigError) as caught:
        validate(Sample, raw)
    message = caught.value.message
    assert "name must be given" in message
    assert "phases[1].budget_ms" in message
    assert "got 0" in message
    assert "nam is not a key of this configuration; did you mean name?" in message


def test_set_overrides_nested_keys_with_yaml_values(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("training: {seed: 1}\n")
    assert read(str(path), ["training.seed=5", "training.rate=1.0e-3", "model.encoder=a/b"]) == {
        "training": {"seed": 5, "rate": 0.001},
        "model": {"encoder": "a/b"},
    }


@pytest.mark.parametrize("override", ["training", "=1", "a..b=1", "training.seed.x=1"])
def test_an_override_that_makes_no_sense_is_refused(tmp_path: Path, override: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("training: {seed: 1}\n")
    with pytest.raises(ConfigError, match="--set"):
        read(str(path), [override])


def test_an_unknown_bare_name_lists_what_ships_and_suggests() -> None:
    with pytest.raises(ConfigError, match="did you mean ranking_xgboost") as caught:
        read("ranking_xgbost")
    assert all(name in caught.value.message for name in shipped())


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: [", b"- 1\n", b""])
def test_a_file_that_is_not_keys_and_values_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        read(str(path))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        read(str(tmp_path / "absent.yaml"))
