from pathlib import Path
from typing import Literal, Self

import pytest
from pydantic import Field, model_validator

from models.config import Config, read, shipped, validate
from models.errors import ConfigError


class Phase(Config):
    model: str
    budget_ms: int = Field(default=30, ge=1)


class Sample(Config):
    name: str
    phases: tuple[Phase, ...] = ()
    kind: Literal["a", "b"] = "a"
    share: float = Field(default=0.5, gt=0, lt=1, allow_inf_nan=False)
    is_on: bool = True
    file: Path | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.name == "bad":
            raise ValueError("name must not be bad; take another one")
        return self


def test_every_mistake_of_a_file_is_reported_at_once_with_its_path() -> None:
    raw = {"nam": "x", "phases": [{"model": "a"}, {"model": "b", "budget_ms": 0}]}
    with pytest.raises(ConfigError) as caught:
        validate(Sample, raw)
    message = caught.value.message
    assert message.split("; ") == [
        "name must be given",
        "add it",
        "phases[1].budget_ms must be at least 1, got 0",
        "correct it",
        "nam is not a key of this configuration",
        "did you mean name?",
    ]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"name": 5}, "name must be a text, got 5; correct it"),
        ({"name": "x", "phases": "x"}, "phases must be a list, got 'x'; correct it"),
        ({"name": "x", "phases": ["x"]}, "phases[0] must be keys and values, got 'x'; correct it"),
        (
            {"name": "x", "phases": [{"model": "m", "budget_ms": "soon"}]},
            "budget_ms must be a whole number, got 'soon'",
        ),
        ({"name": "x", "phases": [{"model": "m", "budget_ms": 1.5}]}, "budget_ms must be a whole number, got 1.5"),
        ({"name": "x", "kind": "c"}, "kind must be 'a' or 'b', got 'c'; correct it"),
        ({"name": "x", "share": 0}, "share must be above 0, got 0; correct it"),
        ({"name": "x", "share": 1}, "share must be below 1, got 1; correct it"),
        ({"name": "x", "share": float("inf")}, "share must be a finite number, got inf"),
        ({"name": "x", "share": "half"}, "share must be a number, got 'half'"),
        ({"name": "x", "is_on": 3}, "is_on must be true or false, got 3"),
        ({"name": "x", "file": 3}, "file must be a path, got 3"),
        ({"name": "x", "extra": 3}, "extra is not a key of this configuration; leave it out"),
        ({"name": "bad", "file": "secret"}, "configuration: name must not be bad; take another one"),
    ],
)
def test_a_mistake_is_said_in_a_persons_words(raw: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Sample, raw)
    assert caught.value.message.removesuffix("; correct it").endswith(said.removesuffix("; correct it"))
    assert "secret" not in caught.value.message


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
