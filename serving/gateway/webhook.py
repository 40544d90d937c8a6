"""MLflow's own word that an alias has moved: signed, fresh and heard once, or refused.

MLflow signs `DELIVERY_ID.TIMESTAMP.BODY` with HMAC-SHA256 under the webhook's secret, as Standard Webhooks does
(https://www.standardwebhooks.com), and tries again with the same three where it got no answer.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from models.errors import ConfigError, UnavailableError
from serving.gateway import wire
from serving.gateway.config import WebhookConfig
from serving.gateway.errors import ReplayError, SignatureError
from serving.gateway.messages import Answer, Request

SIGNED = SIGNATURE, DELIVERY_ID, TIMESTAMP = b"x-mlflow-signature", b"x-mlflow-delivery-id", b"x-mlflow-timestamp"

_VERSION = b"v1,"
_ENTITY, _ACTION = "model_version_alias", "created"


@dataclass(frozen=True, slots=True)
class AliasMoved:
    """An alias of a registered model means this version, since this moment."""

    name: str
    alias: str
    version: str
    at: datetime


class Webhook:
    """Reads deliveries; `moved` is told of an alias, and says whether this gateway follows it.

    heard: is given every delivery that was accepted from a caller, for others who follow too.

    ConfigError where the secret cannot be read. It is read anew for each delivery, so that it can be changed.
    """

    def __init__(self, config: WebhookConfig, moved: Callable[[AliasMoved], bool]) -> None:
        self._config = config
        self._moved = moved
        self.heard: Callable[[Request], None] = lambda _: None
        self._forget_at_s: dict[bytes, float] = {}
        """Deliveries that were accepted, oldest first, and when their timestamps will be too old anyway."""
        try:
            self._secret()
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"webhook.secret_file must hold the webhook's secret, {config.secret_file} does not ({error}); "
                "write it there",
                field="webhook.secret_file",
            ) from error

    def receive(self, request: Request) -> Answer:
        """Take a delivery and tell others of it; whatever `take` refuses it for."""
        answer = self.take(request)
        self.heard(request)
        return answer

    def take(self, request: Request) -> Answer:
        """Take a delivery; SignatureError where it is not MLflow's or not new, ReplayError where it came before."""
        delivery_id = request.headers.get(DELIVERY_ID, b"")
        self._check(request, delivery_id)
        event = wire.decode(request.body, _decoder)
        self._forget_at_s[delivery_id] = time.time() + 2 * self._config.tolerance_s
        is_followed = False
        if (event.entity, event.action) == (_ENTITY, _ACTION):
            alias = wire.decode(bytes(event.data), _alias_decoder)
            is_followed = self._moved(AliasMoved(alias.name, alias.alias, alias.version, event.timestamp))
        return Answer(wire.encode(wire.StatusAnswer("accepted" if is_followed else "ignored")))

    def _check(self, request: Request, delivery_id: bytes) -> None:
        timestamp, signature = request.headers.get(TIMESTAMP, b""), request.headers.get(SIGNATURE, b"")
        try:
            secret = self._secret()
        except (OSError, ValueError) as error:
            raise UnavailableError("the webhook's secret must be readable, it is not; send this again") from error
        signed = b"%b.%b.%b" % (delivery_id, timestamp, request.body)
        expected = _VERSION + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256))
        if not hmac.compare_digest(expected, signature) or not timestamp.isdigit():
            raise SignatureError(
                "a delivery must be signed with the webhook's secret, this one is not; use the secret of "
                "webhook.secret_file in MLflow too"
            )
        now_s, sent_s = time.time(), float(timestamp)
        if abs(now_s - sent_s) > self._config.tolerance_s:
            raise SignatureError(
                f"a delivery must be at most {self._config.tolerance_s:g} s old, this one is {now_s - sent_s:.0f} s "
                "old; set both clocks"
            )
        self._forget(now_s)
        if delivery_id in self._forget_at_s:
            raise ReplayError("a delivery counts once, this one came before; there is nothing to do")

    def _forget(self, now_s: float) -> None:
        for delivery_id, forget_at_s in list(self._forget_at_s.items()):
            if forget_at_s > now_s:
                return
            del self._forget_at_s[delivery_id]

    def _secret(self) -> bytes:
        secret = self._config.secret_file.read_bytes().strip()
        if not secret:
            raise ValueError("it is empty")
        return secret


class _Event(Struct, frozen=True):
    """What MLflow sends; its other fields do not matter here."""

    entity: str
    action: str
    timestamp: Annotated[datetime, Meta(tz=True)]
    data: msgspec.Raw


class _Alias(Struct, frozen=True):
    """The `data` of an alias that was set."""

    name: str
    alias: str
    version: str


_decoder = msgspec.json.Decoder(_Event)
_alias_decoder = msgspec.json.Decoder(_Alias)
