"""`evaluation.json`: what was measured of a bundle's variants, written by training and read by gates and people.

Units: metrics as fractions (0.97, not 97), durations in milliseconds, sizes in bytes. An undefined metric is absent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from models.errors import BundleError
from models.manifest import FamilyName

EVALUATION = "evaluation.json"

VariantName = Literal["float32", "int8", "fp16"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Slice(_Part):
    """The main metric on part of a split: `n` examples, its value and its interval [low, high]."""

    n: int
    value: float
    interval: tuple[float, float]


class Quality(_Part):
    """One split's metrics with their intervals, and the main metric on each slice (`class=returns`, `words=2-3`)."""

    n: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    slices: dict[str, Slice] = {}


class Latency(_Part):
    """Milliseconds of one call in process on one thread, over `n_calls` calls.

    total: from the request's text or features to the decoded answer. model: inside ONNX Runtime alone.
    """

    n_calls: int
    total_p50_ms: float
    total_p95_ms: float
    model_p50_ms: float
    model_p95_ms: float


class Variant(_Part):
    """One ONNX file: quality by split (`valid`, `test`), latency by size of the call (`batch_8`, `list_100`), size."""

    quality: dict[str, Quality]
    latency: dict[str, Latency]
    size_bytes: int


class Parity(_Part):
    """How far a model's answers are from those of the one it was made from, on the same examples.

    largest_difference: of any output value. n_changed_decisions: examples whose label, tags or order differ.
    """

    largest_difference: float
    n_changed_decisions: int
    n_examples: int

    def holds(self, tolerance: float, max_changed_decisions: int) -> bool:
        """Whether both are within bounds."""
        return self.largest_difference <= tolerance and self.n_changed_decisions <= max_changed_decisions


class RecipeTrial(_Part):
    """One way of quantizing, measured on valid.

    loss: float32 minus this of the loss measure. losses: the same of every metric. error: root mean square of the
    outputs' differences from float32, as a share of the outputs' spread. batch_effect: largest difference of an output
    between a request alone and in a batch. latency_ms: milliseconds in ONNX Runtime by cores and size of the batch
    (`one_core_batch_1`, `all_cores_batch_32`), all recipes in turns. spared: products that were treated otherwise.
    """

    recipe: str
    size_bytes: int
    loss: float
    losses: dict[str, float]
    error: float
    batch_effect: float
    latency_ms: dict[str, float] = {}
    spared: tuple[str, ...] = ()


class Quantization(_Part):
    """What INT8 costs: `loss` is float32 minus int8 of `measure` on valid; `kept` while at most `max_loss`.

    measure: the main metric, or the mean of two where a model answers two questions (None: the main metric).
    recipe: the one that is kept, or that lost least. trials: all that were measured. float32_latency_ms: as in a trial.
    """

    loss: float
    max_loss: float
    kept: bool
    parity: Parity
    """INT8 against float32 on valid; for information, as INT8 is judged by its loss."""
    measure: str | None = None
    recipe: str = "by_token"
    trials: tuple[RecipeTrial, ...] = ()
    float32_latency_ms: dict[str, float] = {}


class Report(_Part):
    """All of `evaluation.json`; latency is of the variants that a CPU serves.

    parity: of the float32 export against the library that trained it, on valid.
    """

    family: FamilyName
    main_metric: str
    served_variant: VariantName
    variants: dict[VariantName, Variant]
    parity: Parity
    quantization: Quantization | None = None
    fp16: Parity | None = None
    """FP16 against float32 on valid, on the CPU."""

    def save(self, directory: Path) -> None:
        """Write `evaluation.json` into a bundle's draft."""
        (directory / EVALUATION).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read a bundle's `evaluation.json`; BundleError where it is absent or breaks a rule."""
        file = directory / EVALUATION
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise BundleError(f"a bundle must hold {EVALUATION}, {directory} has none that can be read") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise BundleError(
                f"{file} breaks the rule of `{where}`: {first['msg']}; train again", field=where
            ) from error

    @property
    def int8_recipe(self) -> str | None:
        """How the bundle's INT8 was made; None where it has none."""
        return self.quantization.recipe if self.quantization is not None and self.quantization.kept else None

    @property
    def served(self) -> Variant:
        """The variant that gateways serve."""
        return self.variants[self.served_variant]

    @property
    def known_by(self) -> str:
        """The split that a model is known by: test, or valid where there is no test."""
        return "test" if "test" in self.served.quality else "valid"
