"""Follows the deployment directory: when a promotion moves an alias, what is served moves too, without a restart.

The new choice is opened beside the one that serves: loaded, proved on its golden rows and thereby warm. Then it takes
its place between two requests, and the old one ends with the last request that began with it. No request is dropped,
none is answered by a mix of versions. Where the new choice cannot be opened the old one stays, and the log says why.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from models.errors import BundleError, NotFoundError, RankyardError, UnavailableError
from registry import deployment
from registry.deployment import Pointer
from serving.gateway.app import App
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane, Roles, choose
from serving.gateway.telemetry import Telemetry
from serving.gateway.webhook import AliasMoved

_log = logging.getLogger("rankyard.gateway")

_SETTLES_EVERY_S = 0.1
"""How often the pointers are looked at while a promotion is under way."""
_TRIES_EVERY_S = 1.0
"""How often a choice is tried that could not be opened yet, where nothing else says when to look."""


@dataclass(frozen=True, slots=True)
class _Expected:
    """A version that an alias should mean, and until when that is waited for."""

    version: str
    until_s: float


class Following:
    """Keeps `app.dataplane` at what `config` means in the deployment directory; belongs to one event loop.

    open_: opens what is to be served, with a runtime of its own.
    """

    def __init__(
        self,
        app: App,
        config: GatewayConfig,
        directory: Path,
        open_: Callable[[Roles], Awaitable[Dataplane]],
        telemetry: Telemetry,
    ) -> None:
        self._app = app
        self._telemetry = telemetry
        self._config = config
        self._directory = config.deployment or directory
        self._open = open_
        self._seen: list[Pointer] | str = []
        self._expected: dict[tuple[str, str], _Expected] = {}
        """By name and alias, what MLflow says that is not published yet: `champion` moves before its pointer does."""
        self._told_at: dict[tuple[str, str], datetime] = {}
        self._told = asyncio.Event()
        self._is_settled = True
        self._refused = ""
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self) -> Dataplane:
        """Open the first choice; whatever it is refused for."""
        self._seen = await asyncio.to_thread(self._pointers)
        opened = await self._open(await asyncio.to_thread(choose, self._config, self._directory))
        self._app.dataplane = opened
        self._telemetry.serves(opened.roles.models.values(), is_swap=False)
        return opened

    def expect(self, moved: AliasMoved) -> bool:
        """Look at the pointers at once, and until they say what MLflow says; False where that changes nothing here."""
        webhook, alias = self._config.webhook, (moved.name, moved.alias)
        # MLflow sends from several threads: an older word may come later.
        if webhook is None or not _follows(self._config, moved) or moved.at < self._told_at.get(alias, moved.at):
            return False
        self._told_at[alias] = moved.at
        self._expected[alias] = _Expected(moved.version, time.monotonic() + webhook.settle_s)
        self._told.set()
        return True

    async def run(self) -> None:
        """Look at the pointers every `config.follow_s` seconds and when `expect` says so, until cancelled."""
        while True:
            await self._wait()
            pointers = await asyncio.to_thread(self._pointers)
            self._is_settled = pointers == self._seen or await self._follow()
            if self._is_settled:
                self._seen = pointers
            self._compare(pointers)

    async def _wait(self) -> None:
        """Wait for the next look."""
        pause_s = self._config.follow_s
        if self._expected:
            pause_s = min(pause_s or _SETTLES_EVERY_S, _SETTLES_EVERY_S)
        elif not self._is_settled:
            pause_s = pause_s or _TRIES_EVERY_S
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._told.wait()
        self._told.clear()

    def _compare(self, pointers: list[Pointer] | str) -> None:
        """Forget what is published and served by now, and what never was, which the log says."""
        meant = {
            (pointer.name, alias): release.version
            for pointer in (pointers if isinstance(pointers, list) else [])
            for alias, release in pointer.aliases.items()
        }
        for (name, alias), expected in list(self._expected.items()):
            if meant.get((name, alias)) == expected.version:
                del self._expected[name, alias]
            elif time.monotonic() > expected.until_s:
                del self._expected[name, alias]
                _log.error(
                    "MLflow says that %s@%s is version %s, which nobody has published to %s; promote it with "
                    "`rankyard promote`",
                    name,
                    alias,
                    expected.version,
                    self._directory,
                )

    async def close(self) -> None:
        """Finish what was begun with the choices before this one, and then with it."""
        await asyncio.gather(*self._retiring)
        if self._app.dataplane is not None:
            await self._app.dataplane.close()

    def _pointers(self) -> list[Pointer] | str:
        """Everything that the aliases mean; one sentence where that cannot be read."""
        try:
            return deployment.names(self._directory)
        except RankyardError as error:
            return error.message

    async def _follow(self) -> bool:
        """Serve what is chosen now; False where that is to be tried again although no pointer moves.

        A Triton server that is away, or has not been given the new version yet, is asked until it has it; a bundle
        that is not whole may be on its way.
        """
        serving = self._app.dataplane
        try:
            roles = await asyncio.to_thread(choose, self._config, self._directory)
            if serving is not None and _identity(roles) == _identity(serving.roles):
                self._telemetry.following_refused.set(0)
                self._refused = ""
                return True
            opened = await self._open(roles)
        except RankyardError as error:
            if error.message != self._refused:
                _log.error("still serving %s: %s", _names(serving), error.message)
            self._refused = error.message
            self._telemetry.following_refused.set(1)
            return not isinstance(error, UnavailableError | NotFoundError | BundleError)
        except Exception:
            _log.exception("still serving %s: the new choice could not be opened", _names(serving))
            self._telemetry.following_refused.set(1)
            return True
        self._app.dataplane, self._refused = opened, ""
        self._telemetry.serves(opened.roles.models.values(), is_swap=True)
        _log.warning("serving %s, after %s", _names(opened), _names(serving))
        if serving is not None:
            task = asyncio.get_running_loop().create_task(_retire(serving))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        return True


async def _retire(dataplane: Dataplane) -> None:
    """End what is served no more, and give its memory back: its parts know each other, its kept answers among them."""
    await dataplane.retire()
    del dataplane
    gc.collect()


def _follows(config: GatewayConfig, moved: AliasMoved) -> bool:
    """Whether what is served may change when this alias moves."""
    models = config.models
    named = [models.intent, models.tagging, models.ranking, *(phase.model for phase in config.phases)]
    is_by_default = None in named[: 2 if config.phases else 3]
    return f"{moved.name}@{moved.alias}" in named or (is_by_default and moved.alias == "champion")


def _identity(roles: Roles) -> tuple[object, ...]:
    """What answers, whatever it is called by: each question's reference and digest."""
    asked = (roles.intent, roles.tagging, *(model for model, _ in roles.phases))
    return tuple(None if model is None else (model.ref, model.bundle.digest) for model in asked)


def _names(dataplane: Dataplane | None) -> str:
    return "nothing" if dataplane is None else ", ".join(dataplane.roles.models)
