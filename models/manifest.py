"""`manifest.json`: what a trained model says of itself, and all that is needed to ask it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FORMAT = 2
READABLE_FORMATS = (1, 2)
"""1 knew no decision on scope, no transitions between tags, no gazetteer, and one kind of ranker."""
OOS_LABEL = "oos"

FamilyName = Literal["intent", "tagging", "ranking"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Part):
    """One tensor: numpy's name of its type, its shape (-1: varies), and what pads an input under `rows`."""

    name: str
    dtype: Literal["int64", "float32"]
    shape: tuple[int, ...]
    pad: int = 0


class Signature(_Part):
    """Tensors in and out of `model.onnx`, and how requests join into a batch (see `models.batch`)."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layout: Literal["rows", "concat"]


class SubwordText(_Part):
    """Text read through `tokenizer.json`; one beyond `max_tokens` is read in windows or refused, never cut."""

    kind: Literal["subword"] = "subword"
    max_tokens: int
    max_windows: int = 1


class NgramText(_Part):
    """Text read as hashed n-grams of characters and words (`models.text.ngram_ids`)."""

    kind: Literal["ngrams"] = "ngrams"
    char_ngrams: tuple[int, int]
    word_ngrams: tuple[int, int]
    n_buckets: int


TextSettings = Annotated[SubwordText | NgramText, Field(discriminator="kind")]


class PairFeatures(_Part):
    """Features computed from (query text, candidate text) by `models.features`, before those the caller sends.

    `features.json` beside the manifest holds the corpus statistics; `encoder.onnx` and `tokenizer.json` embed text.
    """

    max_tokens: int


class PairText(_Part):
    """Query and candidate text in one row of tokens by `tokenizer.json`; only the text is cut, to `max_tokens` in all.

    is_apart: each is a text of its own, with all of its special tokens; otherwise they stand in the template of a pair.
    """

    max_tokens: int
    is_apart: bool = False


class Calibration(_Part):
    """How logits become confidences: softmax(logits / temperature), or sigmoid where a text may have several labels."""

    temperature: float = 1.0


ScopeScore = Literal["energy", "distance", "oos_class"]


class Scope(_Part):
    """How it is decided whether a text is in scope (`models.scope`): where the weighed scores reach `threshold`.

    weights: of each score. bias: with it the sum is the log-odds of being in scope, where `is_calibrated`; without
    `oos` rows to learn them from, the weight is 1 and the sum says no more than which text is further in.
    """

    weights: dict[ScopeScore, float]
    bias: float = 0.0
    threshold: float
    is_calibrated: bool


class EncoderOrigin(_Part):
    """Which pretrained weights were used: what was asked for, where it was found, sha256 of the weights."""

    requested: str
    source: Literal["directory", "cache", "package", "hub"]
    sha256: str


class TeacherOrigin(_Part):
    """Which model a student learned from: the REF that was asked for, and the digest of the bundle it meant."""

    requested: str
    digest: str


class Contents(_Part):
    """What a family's training knows of its model; the rest of the manifest is added when the bundle is sealed.

    labels: intent labels, in the order of `intent_logits`. tags: BIO tags, in the order of `tag_logits`.
    features: columns of the `features` input, in order; the first ones come from `pair_features` where that is set, the
    last ones from `relative`: those features' places in the list, as `models.in_list` has it.
    has_transitions: `transitions.npy` holds what the network learned of the order of tags (`models.chain`).
    gazetteer: types of the terms in `gazetteer.json`, in the order of the bits of the input `gazetteer`.
    propensities: chance that a position is looked at, from position 1 on, by which clicks were weighed in training.
    scope: the decision on scope; None where only the label `oos`, if the model has it, says that.
    gives_several_labels: each label is a question of its own, and a text may have any number of them. implied_labels:
    of a label, those that go with it wherever it stands, such as the department of a product type.
    """

    family: FamilyName
    signature: Signature
    labels: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None
    has_transitions: bool = False
    gazetteer: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    relative: tuple[str, ...] = ()
    text: TextSettings | None = None
    pair_features: PairFeatures | None = None
    pair_text: PairText | None = None
    calibration: Calibration = Calibration()
    scope: Scope | None = None
    gives_several_labels: bool = False
    implied_labels: dict[str, tuple[str, ...]] = {}
    encoder: EncoderOrigin | None = None
    propensities: tuple[float, ...] | None = None

    @property
    def reads_texts(self) -> bool:
        """Whether a ranker needs the text of every candidate."""
        return self.pair_features is not None or self.pair_text is not None


class SplitDigest(_Part):
    """One split's origin: file name, rows, sha256 of what was read."""

    file: str
    rows: int
    sha256: str


class Manifest(Contents):
    """All of `manifest.json`; `files` maps every other file of the bundle to its sha256.

    int8_recipe: how `model.int8.onnx` was made, where there is one (`training.quantization.recipes`).
    fp16_tolerance: how far another processor's answers of `model.fp16.onnx` may be from its golden ones, where there
    is one.
    """

    format: int
    name: str
    created: datetime
    config: dict[str, Any]
    config_sha256: str
    data: dict[str, SplitDigest]
    code_version: str
    teacher: TeacherOrigin | tuple[TeacherOrigin, ...] | None = None
    tolerance: float
    int8_recipe: str | None = None
    fp16_tolerance: float | None = None
    files: dict[str, str]

    def tolerance_of(self, variant: str) -> float:
        """How far an output may be from its golden one."""
        is_half = variant == "fp16" and self.fp16_tolerance is not None
        return self.fp16_tolerance or self.tolerance if is_half else self.tolerance
