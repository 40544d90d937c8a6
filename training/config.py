"""What a training may be told: one schema for each (task, kind of model), every field used by it and no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, field_validator

from models.config import Config, validate
from models.errors import ConfigError
from training.recipes import RecipeName

Fraction = Annotated[float, Field(ge=0, le=1)]


def _ordered(bounds: tuple[int, int]) -> tuple[int, int]:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError("must be [shortest, longest] with 0 < shortest <= longest")
    return bounds


Lengths = Annotated[tuple[int, int], AfterValidator(_ordered)]


class ExportConfig(Config):
    """How closely ONNX must answer as its source does on the valid set."""

    tolerance: PositiveFloat = 1e-4
    """Largest absolute difference of any output."""
    max_changed_decisions: int = Field(default=0, ge=0)
    """Valid examples whose decision (label, tags, order) may change."""


class QuantizeConfig(Config):
    """INT8 by the best of some recipes, kept only within its loss budget."""

    enabled: bool = True
    max_loss: Fraction = 0.003
    """Largest drop on valid of the main metric, or of its mean with intent_accuracy where joint (0.003: 0.3 points)."""
    recipes: Literal["default", "all"] | tuple[RecipeName, ...] = "default"
    """`default`: the first of a short list that is within the budget; otherwise the best of those named, or of all."""
    objective: Literal["latency", "size"] = "latency"
    """What makes a recipe within the budget the best."""
    fp16: bool = False
    """Write `model.fp16.onnx` for GPUs too, kept within the same budget; served where `fp16` is asked for by name."""

    @field_validator("recipes")
    @classmethod
    def _names_some(cls, recipes: str | tuple[RecipeName, ...]) -> str | tuple[RecipeName, ...]:
        if not isinstance(recipes, str) and not 0 < len(set(recipes)) == len(recipes):
            raise ValueError("must be default, all, or one or more different recipes; set enabled: false for no INT8")
        return recipes


class EvaluateConfig(Config):
    """How `evaluation.json` is measured."""

    n_resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples of each confidence interval."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """Level of the intervals."""


class LinearModel(Config):
    """Hashed character and word n-grams, TF-IDF, logistic regression."""

    kind: Literal["linear"]
    char_ngrams: Lengths = (2, 5)
    """Shortest and longest character n-gram, within words and their boundaries."""
    word_ngrams: Lengths = (1, 2)
    """Shortest and longest word n-gram."""
    n_buckets: PositiveInt = 2**20
    """Hash buckets."""
    min_count: PositiveInt = 2
    """Training texts that must hold a bucket for it to get weights."""


class LinearTraining(Config):
    """Multinomial logistic regression by scikit-learn."""

    seed: int = 13
    regularization: PositiveFloat = 30.0
    """Inverse strength C of the L2 penalty."""
    max_iterations: PositiveInt = 200


class TransformerModel(Config):
    """A pretrained encoder with one head a question."""

    kind: Literal["transformer"]
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Hub id, directory, or installed weights package."""
    max_tokens: int = Field(default=128, ge=8, le=8192)
    """Longest text in tokens that is read at once."""
    max_windows: int = Field(default=1, ge=1, le=64)
    """How many overlapping windows of `max_tokens` a longer text may take; 1: it is refused, in training and served."""
    dropout: Fraction = 0.1


class TaggerModel(TransformerModel):
    """As TransformerModel, with what only a tagger reads."""

    crf: bool = True
    """Learn which tag follows which (a linear-chain CRF), and decode by it."""
    gazetteer: str | None = None
    """Terms that the network is told of: `.jsonl` or `.csv` of {"type", "term"}, below the data directory or a path."""


class NetworkTraining(Config):
    """AdamW with linear warm-up and decay, length-bucketed batches, early stopping on valid."""

    seed: int = 13
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 32
    learning_rate: PositiveFloat = 5e-5
    """Peak learning rate of the encoder."""
    head_learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of the heads, which start from nothing."""
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: Fraction = 0.1
    """Part of all steps over which the learning rate rises."""
    patience: PositiveInt = 3
    """Epochs without a better valid metric before training stops."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    checkpoint_every_s: PositiveFloat = 60.0
    """Seconds between checkpoints inside an epoch; one is written after every epoch too."""


class JointTraining(NetworkTraining):
    """As NetworkTraining; the loss is tags + intent_loss_weight x intent."""

    intent_loss_weight: float = Field(default=1.0, ge=0)


class XgboostModel(Config):
    """LambdaMART by XGBoost."""

    kind: Literal["xgboost"]
    objective: Literal["rank:ndcg", "rank:pairwise", "rank:map"] = "rank:ndcg"
    booster: Literal["gbtree"] = "gbtree"


class PairsModel(XgboostModel):
    """LambdaMART over features computed from (query, title)."""

    kind: Literal["pairs"]  # type: ignore[assignment]
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Encoder of the embedding similarity: hub id, directory, or installed weights package."""
    max_tokens: int = Field(default=128, ge=8, le=8192)
    """Tokens of a title that are embedded; the rest of a longer title counts in the lexical features only."""


class RankingTraining(Config):
    """Boosting, with early stopping on valid NDCG@10."""

    seed: int = 13
    n_trees: PositiveInt = 1000
    learning_rate: PositiveFloat = 0.05
    max_depth: PositiveInt = 6
    min_child_weight: float = Field(default=1.0, ge=0)
    subsample: float = Field(default=0.8, gt=0, le=1)
    feature_fraction: float = Field(default=0.8, gt=0, le=1)
    """Part of the features that each tree may use."""
    l2: float = Field(default=1.0, ge=0)
    max_bins: int = Field(default=256, ge=2)
    pairs_per_document: PositiveInt = 8
    """LambdaMART pairs sampled for each document."""
    pair_method: Literal["topk", "mean"] = "topk"
    patience: PositiveInt = 50
    """Trees without a better valid NDCG@10 before training stops."""
    n_threads: int = Field(default=0, ge=0)
    """0: all cores."""


class _Train(Config):
    export: ExportConfig = ExportConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


class IntentLinearConfig(_Train):
    """`task: intent`, `model.kind: linear`."""

    task: Literal["intent"]
    model: LinearModel
    training: LinearTraining = LinearTraining()


class IntentTransformerConfig(_Train):
    """`task: intent`, `model.kind: transformer`."""

    task: Literal["intent"]
    model: TransformerModel
    training: NetworkTraining = NetworkTraining()
    quantize: QuantizeConfig = QuantizeConfig()


class TaggingTransformerConfig(_Train):
    """`task: tagging`, `model.kind: transformer`; joint with intent where rows have a `label`."""

    task: Literal["tagging"]
    model: TaggerModel
    training: JointTraining = JointTraining()
    quantize: QuantizeConfig = QuantizeConfig()


class RankingConfig(_Train):
    """`task: ranking`, `model.kind: xgboost`: numeric features."""

    task: Literal["ranking"]
    model: XgboostModel
    training: RankingTraining = RankingTraining()


class RankingPairsConfig(_Train):
    """`task: ranking`, `model.kind: pairs`: text pairs, and numeric features where rows have them."""

    task: Literal["ranking"]
    model: PairsModel
    training: RankingTraining = RankingTraining()


TrainConfig = (
    IntentLinearConfig | IntentTransformerConfig | TaggingTransformerConfig | RankingConfig | RankingPairsConfig
)

SCHEMAS: dict[tuple[str, str], type[TrainConfig]] = {
    ("intent", "linear"): IntentLinearConfig,
    ("intent", "transformer"): IntentTransformerConfig,
    ("tagging", "transformer"): TaggingTransformerConfig,
    ("ranking", "xgboost"): RankingConfig,
    ("ranking", "pairs"): RankingPairsConfig,
}


def parse(raw: Mapping[str, Any], task: str) -> TrainConfig:
    """Choose the schema by `task` and `model.kind`, and check `raw` against it; ConfigError otherwise."""
    if raw.get("task") != task:
        raise ConfigError(f"task must be {task} for `rankyard train {task}`, got {raw.get('task')!r}", field="task")
    model = raw.get("model")
    kind = model.get("kind") if isinstance(model, Mapping) else None
    kinds = [known for of, known in SCHEMAS if of == task]
    if kind not in kinds:
        raise ConfigError(f"model.kind must be one of {', '.join(kinds)} for {task}, got {kind!r}", field="model.kind")
    return validate(SCHEMAS[task, str(kind)], raw)
