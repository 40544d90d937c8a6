"""What a training may be told: one schema for each (task, kind of model), every field used by it and no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from models.config import Config, validate
from models.errors import ConfigError
from models.manifest import ScopeScore
from training.quantization.recipes import RecipeName

Fraction = Annotated[float, Field(ge=0, le=1)]


def _ordered(bounds: tuple[int, int]) -> tuple[int, int]:
    if not 0 < bounds[0] <= bounds[1]:
        raise ValueError("must be [shortest, longest] with 0 < shortest <= longest")
    return bounds


Lengths = Annotated[tuple[int, int], AfterValidator(_ordered)]

FeatureName = Annotated[str, BeforeValidator(lambda name: str(name) if isinstance(name, int) else name)]
"""SVMrank names its features by numbers, which YAML reads as such."""


def _refs(teacher: object) -> object:
    refs = [teacher] if isinstance(teacher, str) else teacher
    if not isinstance(refs, list | tuple) or not refs or not all(isinstance(ref, str) for ref in refs):
        raise ValueError("must be a REF (NAME@alias, NAME/VERSION or a bundle's directory) or a list of them")
    if len(set(refs)) < len(refs):
        raise ValueError("must name each teacher once")
    return tuple(refs)


Refs = Annotated[tuple[str, ...], BeforeValidator(_refs)]


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


class AimConfig(Config):
    """What the threshold of the decision on scope is chosen for, on valid; one of the two."""

    oos_recall: Fraction | None = None
    """Part of the `oos` rows to be found, with as few false alarms as that allows."""
    false_alarms_per_1000: float | None = Field(default=None, ge=0, lt=1000)
    """In-scope rows, of a thousand, that may be called `oos`; finds as many `oos` rows as that allows."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.oos_recall is None) == (self.false_alarms_per_1000 is None):
            raise ValueError("must have either oos_recall or false_alarms_per_1000")
        return self


class ScopeConfig(Config):
    """The decision whether a text is in scope, and the chance that it is; both chosen on valid."""

    scores: tuple[ScopeScore, ...] = Field(default=("energy",), min_length=1)
    """Of `models.scope`; several are weighed by logistic regression, which needs `oos` rows in valid."""
    aim: AimConfig | None = None
    """null: the fewest errors over all rows, labels and scope together; without `oos` rows, that is to refuse none."""
    oos_share: float | None = Field(default=None, gt=0, lt=1)
    """Part of the queries in use that will be out of scope, for confidences and fewest errors; null: as in valid."""

    @field_validator("scores")
    @classmethod
    def _once(cls, scores: tuple[ScopeScore, ...]) -> tuple[ScopeScore, ...]:
        if len(set(scores)) < len(scores):
            raise ValueError("must name each score once")
        return scores


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
    intent_prior: bool = False
    """Make tags less likely that training rows of the text's intent have more rarely than by chance; needs labels."""


Precision = Literal["auto", "float32", "bfloat16"]


class LoopTraining(Config):
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
    checkpoint_every_s: PositiveFloat = 60.0
    """Seconds between checkpoints inside an epoch; one is written after every epoch too."""
    precision: Precision = "float32"
    """Of matrix products while training, never of answers; auto: bfloat16 where the processor multiplies it."""
    engine: Literal["local", "torchrun"] = "local"
    """`torchrun`: several processes share every batch, by PyTorch's DistributedDataParallel."""
    n_processes: PositiveInt = 1
    """With `torchrun`: how many, all on this machine; torchrun itself, where it started them, knows better."""

    @model_validator(mode="after")
    def _processes_have_an_engine(self) -> Self:
        if self.engine == "local" and self.n_processes > 1:
            raise ValueError("n_processes above 1 needs training.engine torchrun")
        return self


class NetworkTraining(LoopTraining):
    """As LoopTraining, towards the labels of the rows."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class IntentTraining(NetworkTraining):
    """As NetworkTraining, with what a pretrained sentence encoder knows of texts and of the labels' names."""

    cosine_scale: PositiveFloat | None = None
    """null: a linear head that starts from nothing. A number: logits are that times the cosine of the text's vector and
    the class's, which starts as the mean of the class's texts: better where texts are few."""
    label_names: bool = False
    """Train on each label's name (`order_status` as "order status") as one more of its texts."""


class JointTraining(NetworkTraining):
    """As NetworkTraining; the loss is tags + intent_loss_weight x intent."""

    intent_loss_weight: float = Field(default=1.0, ge=0)
    n_swapped: int = Field(default=0, ge=0)
    """Rows made of the training rows, for each of them, by giving spans other values of their type."""
    refit: bool = False
    """Once valid has said which epoch is best, train from the start for as many on train and valid together. Valid is
    then not held out and not evaluated; left out, and said so, where there is no test file to judge by, and in trials
    of `tune`."""


class StudentModel(Config):
    """A small BERT that reads its teacher's tokens and begins with what the teacher's token embeddings know.

    With `encoder` a pretrained one, which says itself how large it is and reads tokens of its own.
    """

    kind: Literal["student"]
    encoder: str | None = None
    """Hub id, directory, or installed weights package of a pretrained encoder; null: a small one."""
    n_layers: PositiveInt = 1
    n_hidden: PositiveInt = 128
    """Width of the network; each token of the vocabulary takes as many bytes in the served file."""
    n_heads: PositiveInt = 2
    n_intermediate: PositiveInt = 256
    """Width between the two products of a layer's feed-forward part."""
    dropout: Fraction = 0.1

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.n_hidden % self.n_heads:
            raise ValueError(f"n_hidden must be a multiple of n_heads ({self.n_heads})")
        if self.encoder is not None and (sizes := sorted(self.model_fields_set - {"kind", "encoder", "dropout"})):
            raise ValueError(
                f"a pretrained encoder has its own size, encoder is {self.encoder}; leave out {', '.join(sizes)}"
            )
        return self


class StudentTraining(LoopTraining):
    """As LoopTraining, towards the teacher's answers to the rows, to texts made of them, and to unlabelled ones."""

    learning_rate: PositiveFloat = 2e-3
    """Peak learning rate of the encoder, which knows little more than its heads."""
    head_learning_rate: PositiveFloat = 2e-3
    temperature: PositiveFloat = 2.0
    """Both networks' logits are divided by it before they are compared: above 1, unlikely answers count for more."""
    n_generated: int = Field(default=3, ge=0)
    """Texts made of the training texts, for each of them, that the teacher labels too."""


class JointStudentTraining(StudentTraining):
    """As StudentTraining; the loss is tags + intent_loss_weight x intent."""

    intent_loss_weight: float = Field(default=1.0, ge=0)


class XgboostModel(Config):
    """LambdaMART by XGBoost."""

    kind: Literal["xgboost"]
    objective: Literal["rank:ndcg", "rank:pairwise", "rank:map"] = "rank:ndcg"
    booster: Literal["gbtree"] = "gbtree"
    relative_to_list: tuple[FeatureName, ...] | Literal["all"] = ()
    """Features of which the place in the list is a feature too, NAME_in_list from 0 (lowest) to 1: by name, or all."""


class PairsModel(XgboostModel):
    """LambdaMART over features computed from (query, title)."""

    kind: Literal["pairs"]  # type: ignore[assignment]
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Encoder of the embedding similarity: hub id, directory, or installed weights package."""
    max_tokens: int = Field(default=128, ge=8, le=8192)
    """Tokens of a title that are embedded; the rest of a longer title counts in the lexical features only."""


class ClicksTraining(Config):
    """What every ranker may be told where its rows are a click log."""

    seed: int = 13
    debias: Literal["none", "ips"] | None = None
    """Where train is a click log. ips, the default there: clicks over the looks expected at their positions; none: over
    times shown."""
    propensity: Literal["em", "intervention"] | tuple[PositiveFloat, ...] | None = None
    """Chance that a position is looked at, for `debias: ips`: estimated by em (the default) or from interventions, or
    given from position 1 on."""

    @model_validator(mode="after")
    def _check_clicks(self) -> Self:
        if self.propensity is not None and self.debias == "none":
            raise ValueError("propensity is for debias ips, debias is none; leave it out")
        return self


class RankingTraining(ClicksTraining):
    """Boosting, with early stopping on valid NDCG@10."""

    n_trees: PositiveInt = 1000
    """Steps of boosting at most; each grows `trees_per_step` trees."""
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
    patience: PositiveInt | None = 50
    """Steps without a better valid NDCG@10 before training stops, and the best number is kept; None: all are kept."""
    n_threads: int = Field(default=0, ge=0)
    """0: all cores."""
    trees_per_step: PositiveInt = 1
    """Trees grown side by side in a step, each on its own sample of rows and features, which share the step."""
    normalize: bool = True
    """Whether a list's gradients are divided by how much they sum up to, so that long lists weigh no more."""
    monotone: dict[FeatureName, Literal[-1, 1]] = Field(default_factory=dict)
    """Features with which a score must never fall (1) or never rise (-1), by name."""
    refit: bool = False
    """Once valid has said how many steps count, grow as many on train and valid together. Valid is then not held out
    and not evaluated; left out, and said so, where there is no test file to judge by, and in trials of `tune`."""
    engine: Literal["local", "spark"] = "local"
    """Where trees are grown: in this process, or by Spark."""
    spark_master: str | None = None
    """Such as local[2] or spark://host:7077; None: what spark-submit or Spark's own configuration says."""
    n_workers: PositiveInt = 1
    """Spark tasks that share the rows; with 1 the trees are those of the local engine."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.engine == "local" and (self.n_workers > 1 or self.spark_master is not None):
            raise ValueError("n_workers and spark_master are for engine spark, engine is local; leave them out")
        if self.engine == "spark" and self.refit:
            raise ValueError("refit is for engine local, engine is spark; leave it out")
        return self


RankingLossName = Literal["pointwise", "listnet", "approx_ndcg", "neural_ndcg"]
RankingLosses = dict[RankingLossName, PositiveFloat]
_LISTWISE_LOSS: RankingLosses = {"listnet": 1.0}
_CROSS_ENCODER_LOSS: RankingLosses = {"pointwise": 1.0, "listnet": 0.3}


class ListwiseModel(Config):
    """A network over numeric features, normalised inside the graph, with attention over the list as an option."""

    kind: Literal["listwise"]
    normalisation: Literal["quantile", "log1p"] = "quantile"
    """Of each feature, by the training rows: its place among their quantiles, or sign(x) log(1 + |x|) standardised."""
    hidden: tuple[PositiveInt, ...] = Field(default=(128, 64), min_length=1)
    """Units of each layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    n_attention_layers: int = Field(default=0, ge=0)
    """Blocks in which every document reads all others of its list (0: each is scored by itself).

    Their cost grows with the square of the list."""
    n_heads: PositiveInt = 4
    """Heads of each attention block; they share the last of `hidden` equally."""

    @model_validator(mode="after")
    def _heads_fit(self) -> ListwiseModel:
        if not self.n_attention_layers and "n_heads" in self.model_fields_set:
            raise ValueError("n_heads does nothing without n_attention_layers; leave it out")
        if self.n_attention_layers and self.hidden[-1] % self.n_heads:
            raise ValueError("the last of hidden must be a multiple of n_heads")
        return self


class _RankingNetworkTraining(ClicksTraining):
    epochs: PositiveInt
    batch_size: PositiveInt
    loss: RankingLosses = Field(min_length=1)
    """Losses by name, each with its weight."""
    learning_rate: PositiveFloat
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: Fraction = 0.1
    """Part of all steps over which the learning rate rises."""
    patience: PositiveInt
    """Epochs without a better valid NDCG@10 before training stops."""
    checkpoint_every_s: PositiveFloat = 60.0
    """Seconds between checkpoints inside an epoch; one is written after every epoch too."""

    @property
    def loop(self) -> LoopTraining:
        """What the training loop is told; a network without an encoder learns at the head's rate."""
        told = self.model_dump(include=set(LoopTraining.model_fields))
        return LoopTraining(**{"head_learning_rate": self.learning_rate, **told})


class ListwiseTraining(_RankingNetworkTraining):
    """AdamW over whole lists, with early stopping on valid NDCG@10; batch_size counts lists."""

    epochs: PositiveInt = 60
    batch_size: PositiveInt = 16
    loss: RankingLosses = Field(default=_LISTWISE_LOSS, min_length=1)
    learning_rate: PositiveFloat = 2e-3
    patience: PositiveInt = 15


class CrossEncoderModel(Config):
    """A pretrained encoder that reads query and title together."""

    kind: Literal["cross_encoder"]
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Hub id, directory, or installed weights package."""
    max_tokens: int = Field(default=64, ge=8, le=8192)
    """Tokens of query and title together; a title beyond them is cut, a query that leaves it no room is refused."""
    reads_apart: bool = False
    """Query and title are read without a look at each other, as sentence encoders were trained, and a head compares
    them: learns from fewer queries. Needs an encoder that can be told positions (BERT, RoBERTa and their kin)."""
    dropout: Fraction = 0.1


class CrossEncoderTraining(_RankingNetworkTraining):
    """AdamW over parts of lists, with early stopping on valid NDCG@10; batch_size counts parts."""

    epochs: PositiveInt = 2
    batch_size: PositiveInt = 4
    loss: RankingLosses = Field(default=_CROSS_ENCODER_LOSS, min_length=1)
    list_size: int = Field(default=16, ge=2)
    """Documents of a part: longer lists are cut at random, so that a step sees several queries."""
    learning_rate: PositiveFloat = 8e-5
    """Peak learning rate of the encoder."""
    head_learning_rate: PositiveFloat = 1e-3
    """Peak learning rate of the head, which starts from nothing."""
    precision: Precision = "float32"
    """As the transformers of intents and tags have it."""
    patience: PositiveInt = 2


class _Train(Config):
    export: ExportConfig = ExportConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


class IntentLinearConfig(_Train):
    """`task: intent`, `model.kind: linear`."""

    task: Literal["intent"]
    model: LinearModel
    training: LinearTraining = LinearTraining()
    scope: ScopeConfig | None = None
    """null: a text is out of scope where its likeliest label is `oos`."""

    @field_validator("scope")
    @classmethod
    def _has_no_vector(cls, scope: ScopeConfig | None) -> ScopeConfig | None:
        if scope is not None and "distance" in scope.scores:
            raise ValueError("distance needs the vector of a text, which a linear model has not; take energy")
        return scope


class IntentTransformerConfig(_Train):
    """`task: intent`, `model.kind: transformer`."""

    task: Literal["intent"]
    model: TransformerModel
    training: IntentTraining = IntentTraining()
    scope: ScopeConfig | None = None
    """null: a text is out of scope where its likeliest label is `oos`."""
    quantize: QuantizeConfig = QuantizeConfig()


class TaggingTransformerConfig(_Train):
    """`task: tagging`, `model.kind: transformer`; joint with intent where rows have a `label`."""

    task: Literal["tagging"]
    model: TaggerModel
    training: JointTraining = JointTraining()
    quantize: QuantizeConfig = QuantizeConfig()


class _Student(_Train):
    teacher: Refs
    """REF of the model to learn from: NAME@alias, NAME/VERSION or a bundle's directory. A list: of all of them."""
    unlabelled: str | None = None
    """A text file (or .gz) with one query a line, for the teacher to label; relative to the data directory."""
    quantize: QuantizeConfig = QuantizeConfig()


class IntentStudentConfig(_Student):
    """`task: intent`, `model.kind: student`."""

    task: Literal["intent"]
    model: StudentModel
    training: StudentTraining = StudentTraining()
    scope: ScopeConfig | None = None
    """The student's own decision; null: a text is out of scope where its likeliest label is `oos`."""


class TaggingStudentConfig(_Student):
    """`task: tagging`, `model.kind: student`; joint with intent where the teacher is."""

    task: Literal["tagging"]
    model: StudentModel
    training: JointStudentTraining = JointStudentTraining()


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


class RankingListwiseConfig(_Train):
    """`task: ranking`, `model.kind: listwise`: numeric features."""

    task: Literal["ranking"]
    model: ListwiseModel
    training: ListwiseTraining = ListwiseTraining()


class RankingCrossEncoderConfig(_Train):
    """`task: ranking`, `model.kind: cross_encoder`: text pairs."""

    task: Literal["ranking"]
    model: CrossEncoderModel
    training: CrossEncoderTraining = CrossEncoderTraining()
    quantize: QuantizeConfig = QuantizeConfig()


TrainConfig = (
    IntentLinearConfig
    | IntentTransformerConfig
    | IntentStudentConfig
    | TaggingTransformerConfig
    | TaggingStudentConfig
    | RankingConfig
    | RankingPairsConfig
    | RankingListwiseConfig
    | RankingCrossEncoderConfig
)

StudentConfig = IntentStudentConfig | TaggingStudentConfig

SCHEMAS: dict[tuple[str, str], type[TrainConfig]] = {
    ("intent", "linear"): IntentLinearConfig,
    ("intent", "transformer"): IntentTransformerConfig,
    ("intent", "student"): IntentStudentConfig,
    ("tagging", "transformer"): TaggingTransformerConfig,
    ("tagging", "student"): TaggingStudentConfig,
    ("ranking", "xgboost"): RankingConfig,
    ("ranking", "pairs"): RankingPairsConfig,
    ("ranking", "listwise"): RankingListwiseConfig,
    ("ranking", "cross_encoder"): RankingCrossEncoderConfig,
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
