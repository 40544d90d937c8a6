"""`gateway.yaml`: what is served, where it runs, and the limits that protect it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from models.config import Config
from models.fusion import RECIPROCAL_RANK_K

Count = Annotated[int, Field(ge=1)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MAX_PORT = 65_535


class ModelsConfig(Config):
    """Which model answers what, as NAME@alias, NAME/VERSION or a bundle's directory.

    Left out, it is the champion of the only name of that family in the deployment directory.
    """

    intent: str | None = None
    tagging: str | None = None
    ranking: str | None = None


class ReciprocalRankConfig(Config):
    """Sum over the phases of 1 / (k + rank): `models.fusion.reciprocal_rank`."""

    method: Literal["reciprocal_rank"]
    k: float = Field(default=RECIPROCAL_RANK_K, gt=0, allow_inf_nan=False)


class LinearConfig(Config):
    """Weighted sum of the phases' standardised scores: `models.fusion.linear`.

    weights: one a phase, from the first to the one that fuses; `models.fusion.fit_weights` finds them on valid lists.
    """

    method: Literal["linear"]
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...]


FuseConfig = Annotated[ReciprocalRankConfig | LinearConfig, Field(discriminator="method")]


class PhaseConfig(Config):
    """One pass over the candidates.

    model: its reference. keep: how many candidates go on, or into the answer where it is the last phase (None: all).
    budget_ms: how long it may take (None: until the request's deadline); the candidates before it that it has not
    scored by then keep their places, and where it has scored none it is skipped. fuse: order by this phase's
    scores and those of the phases before it, of the candidates that came this far (None: by this phase's alone); a
    phase that has not scored every one of them takes no part.
    """

    model: str
    keep: Count | None = None
    budget_ms: Milliseconds | None = None
    fuse: FuseConfig | None = None


class RuntimeConfig(Config):
    """Where models run.

    kind: `onnx` in this process, `triton` on a Triton server. n_workers: batches at once (None: one a core).
    variant: `float32`, `int8` or `fp16` (None: each bundle's own choice). triton_url: HOST:PORT of the server's gRPC
    endpoint (None: the server that `rankyard triton up` started in the workspace). fallback: what Triton fails on, or
    does not answer in half of the time that is left, is answered in this process. hedge_share: of the batches, how many
    may be asked of this process earlier, once they are later than 95 of 100 were. scorers: what may score
    trees in this process, each list by the one that is fastest at its length and gives the same scores to the last bit
    (None: all that are installed). n_alone_threads: cores that a text may use in this process that comes while nothing
    else runs (None: two); above 1, models that read texts are in memory twice.
    """

    kind: Literal["onnx", "triton"] = "onnx"
    n_workers: Count | None = None
    variant: Literal["float32", "int8", "fp16"] | None = None
    triton_url: str | None = None
    fallback: bool = True
    hedge_share: float = Field(default=0.05, ge=0, le=1)
    scorers: tuple[Literal["onnx", "xgboost", "numba"], ...] | None = None
    n_alone_threads: Count | None = None

    @field_validator("triton_url")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        host, _, port = (url or "").rpartition(":")
        if url is not None and (not host or "/" in url or not port.isdecimal() or int(port) > MAX_PORT):
            raise ValueError("triton_url must be the HOST:PORT of a gRPC endpoint, as localhost:8001")
        return url

    @field_validator("scorers")
    @classmethod
    def _has_onnx(cls, scorers: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if scorers is not None and ("onnx" not in scorers or len(set(scorers)) != len(scorers)):
            raise ValueError("scorers must name onnx, which scores what no other can, and each one once")
        return scorers

    @model_validator(mode="after")
    def _has_a_second(self) -> RuntimeConfig:
        if not self.fallback and "hedge_share" in self.model_fields_set:
            raise ValueError("hedges are answered by the fallback; leave hedge_share out, or set fallback: true")
        return self


class BatchConfig(Config):
    """How requests of several callers join.

    max_batch_size: requests in a batch. max_batch_rows: candidates in a batch of ranking requests; a longer list goes
    alone. max_padding: share of a batch's cells that may be padding.
    """

    max_batch_size: Count = 8
    max_batch_rows: Count = 512
    max_padding: float = Field(default=0.5, ge=0, le=1)


class LimitsConfig(Config):
    """What a caller may send, and how much may wait.

    max_connections: open at once (fewer where the system allows this process fewer files).
    max_body_bytes: a request's body (10,000 candidates of 40 features by column are about 4 MiB).
    max_bodies_bytes: the bodies of all requests that are arriving or being answered.
    max_queries: queries in one request. max_query_chars, max_text_chars: length of a query and of a candidate's text.
    max_candidates: candidates in one request. max_queue_length: requests that wait for one model.
    """

    max_connections: Count = 16_384
    max_body_bytes: Count = 4 * 1024 * 1024
    max_bodies_bytes: Count = 256 * 1024 * 1024
    max_queries: Count = 256
    max_query_chars: Count = 1_000
    max_text_chars: Count = 5_000
    max_candidates: Count = 10_000
    max_queue_length: Count = 1_024

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> LimitsConfig:
        if self.max_bodies_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_bodies_bytes must be at least max_body_bytes ({self.max_body_bytes}), or no body could be as "
                f"large, got {self.max_bodies_bytes}"
            )
        return self


class CacheConfig(Config):
    """Which answers to queries are kept, and given again without asking a model; never those of another version.

    max_bytes: of answers kept in this process; 0: none, and every caller's query is computed for itself.
    redis_url: a Redis server whose answers gateways share, as `redis://HOST:PORT/DB`. ttl_s: how long it keeps one.
    max_text_bytes: of what rankers computed of texts, about 3 kB a title; 0: every title is computed anew.
    """

    max_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    max_text_bytes: int = Field(default=128 * 1024 * 1024, ge=0)
    redis_url: str | None = None
    ttl_s: Count = 86_400

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> CacheConfig:
        if self.redis_url is not None and not self.max_bytes:
            raise ValueError("max_bytes 0 means no cache at all; leave redis_url out, or max_bytes")
        return self


class TracingConfig(Config):
    """Traces of requests, sent to an OpenTelemetry collector; needs the extra [otel].

    endpoint: where it takes traces by OTLP over HTTP. ratio: share of the requests that are traced, of those whose
    callers do not say themselves (header `traceparent`). service_name: what this gateway is called in them. headers:
    sent with them, such as a token.
    """

    endpoint: str
    ratio: float = Field(default=0.01, ge=0, le=1)
    service_name: str = Field(default="rankyard", min_length=1)
    headers: dict[str, str] = Field(default_factory=dict)

    @field_validator("endpoint")
    @classmethod
    def _is_url(cls, endpoint: str) -> str:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or not parts.path.strip("/"):
            raise ValueError("endpoint must be a URL with its path, as http://HOST:4318/v1/traces")
        return endpoint


class LogsConfig(Config):
    """What is written to standard error.

    format: `text` for people, `json` for one object a line. level: from which on rankyard's own lines are written.
    requests: a line for every request. query_text: whether lines may hold what callers sent.
    """

    format: Literal["text", "json"] = "text"
    level: Literal["info", "warning"] = "warning"
    requests: bool = False
    query_text: bool = False


class CatalogueConfig(Config):
    """A shop's catalogue: what rankers compute of its titles is computed in the background, before they are asked for.

    file: a `.jsonl` with a product's `title` a line; when it is replaced, what is new is computed. vectors: a directory
    where the titles' vectors are kept for the next start, and for other gateways (None: nowhere).
    """

    file: Path
    vectors: Path | None = None


class WebhookConfig(Config):
    """Whose word is taken that MLflow moved an alias, so that it is served at once: POST /v1/webhooks/mlflow.

    secret_file: holds the secret that MLflow signs its deliveries with. tolerance_s: how old one may be. settle_s: how
    long a promotion may take from moving the alias to publishing it, before the log says that it did not.
    """

    secret_file: Path
    tolerance_s: float = Field(default=300, gt=0, allow_inf_nan=False)
    settle_s: float = Field(default=30, gt=0, allow_inf_nan=False)


class GatewayConfig(Config):
    """All of a gateway's configuration.

    deployment: what promotions publish into (None: the workspace's). phases: ranking in several passes, instead of
    `models.ranking`. deadline_ms: how long a request may take that does not say so itself (header `x-deadline-ms`);
    max_deadline_ms: the most that it may ask for. drain_s: how long a stopping gateway finishes what it has begun.
    follow_s: how often the deployment is looked at for a promotion (None: not of itself). webhook: MLflow's word that
    there is one, beside that or instead (None: not listened to).
    tracing: which requests are traced, and where to (None: none).
    grpc_port: where the Open Inference Protocol is answered over gRPC too (None: nowhere; 0: at a free port).
    catalogue: titles of which everything is computed beforehand (None: when they are first asked for).
    processes: how many answer at the same port; each has its own limits, queues, caches and models, and they divide the
    cores (`runtime.n_workers`).
    """

    deployment: Path | None = None
    models: ModelsConfig = ModelsConfig()
    phases: tuple[PhaseConfig, ...] = ()
    runtime: RuntimeConfig = RuntimeConfig()
    batch: BatchConfig = BatchConfig()
    cache: CacheConfig = CacheConfig()
    limits: LimitsConfig = LimitsConfig()
    tracing: TracingConfig | None = None
    logs: LogsConfig = LogsConfig()
    deadline_ms: Milliseconds = 1_000
    max_deadline_ms: Milliseconds = 30_000
    drain_s: float = Field(default=10, gt=0, allow_inf_nan=False)
    follow_s: float | None = Field(default=1, gt=0, allow_inf_nan=False)
    webhook: WebhookConfig | None = None
    grpc_port: Annotated[int, Field(ge=0, le=MAX_PORT)] | None = None
    catalogue: CatalogueConfig | None = None
    processes: Count = 1

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> GatewayConfig:
        if self.phases and self.models.ranking is not None:
            raise ValueError("phases name the ranking models themselves; leave models.ranking out")
        if self.phases and self.phases[0].budget_ms is not None:
            raise ValueError("the first phase has no order to fall back to; leave its budget_ms out")
        kept = [phase.keep for phase in self.phases if phase.keep is not None]
        if any(later > earlier for earlier, later in pairwise(kept)):
            raise ValueError(f"phases must keep no more than came from the phase before, they keep {kept}")
        for number, phase in enumerate(self.phases, start=1):
            if phase.fuse is not None and number == 1:
                raise ValueError("the first phase has none before it to be fused with; leave its fuse out")
            if isinstance(phase.fuse, LinearConfig):
                if len(phase.fuse.weights) != number:
                    raise ValueError(
                        f"phases[{number - 1}].fuse must have {number} weights, one a phase so far, "
                        f"it has {len(phase.fuse.weights)}"
                    )
                if not any(phase.fuse.weights):
                    raise ValueError(f"phases[{number - 1}].fuse must have a weight above 0")
        if self.deadline_ms > self.max_deadline_ms:
            raise ValueError("deadline_ms must be at most max_deadline_ms")
        return self
