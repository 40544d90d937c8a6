"""Follows the deployment directory: when a promotion moves an alias, what is served moves too, without a restart.

The new choice is opened beside the one that serves: loaded, proved on its golden rows and thereby warm. Then it takes
its place between two requests, and the old one ends with the last request that began with it. No request is dropped,
none is answered by a mix of versions. Where the new choice cannot be opened the old one stays, and the log says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from models.errors import NotFoundError, RankyardError, UnavailableError
from registry import deployment
from serving.gateway.app import App
from serving.gateway.config import GatewayConfig
from serving.gateway.dataplane import Dataplane, Roles, choose
from serving.gateway.telemetry import Telemetry

_log = logging.getLogger("rankyard.gateway")


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
        self._seen: list[str] | str = []
        self._refused = ""
        self._retiring: set[asyncio.Task[None]] = set()

    async def start(self) -> Dataplane:
        """Open the first choice; whatever it is refused for."""
        self._seen = await asyncio.to_thread(self._pointers)
        self._app.dataplane = await self._open(await asyncio.to_thread(choose, self._config, self._directory))
        return self._app.dataplane

    async def run(self) -> None:
        """Look at the pointers every `config.follow_s` seconds, until cancelled; not at all where that is None."""
        while self._config.follow_s is not None:
            await asyncio.sleep(self._config.follow_s)
            seen = await asyncio.to_thread(self._pointers)
            if seen != self._seen and await self._follow():
                self._seen = seen

    async def close(self) -> None:
        """Finish what was begun with the choices before this one, and then with it."""
        await asyncio.gather(*self._retiring)
        if self._app.dataplane is not None:
            await self._app.dataplane.close()

    def _pointers(self) -> list[str] | str:
        """Everything that the aliases mean; one sentence where that cannot be read."""
        try:
            return [pointer.model_dump_json() for pointer in deployment.names(self._directory)]
        except RankyardError as error:
            return error.message

    async def _follow(self) -> bool:
        """Serve what is chosen now; False where that is to be tried again although no pointer moves.

        A Triton server that is away, or has not been given the new version yet, is asked until it has it.
        """
        serving = self._app.dataplane
        try:
            roles = await asyncio.to_thread(choose, self._config, self._directory)
            if serving is not None and _identity(roles) == _identity(serving.roles):
                return True
            opened = await self._open(roles)
        except RankyardError as error:
            if error.message != self._refused:
                _log.error("still serving %s: %s", _names(serving), error.message)
            self._refused = error.message
            return not isinstance(error, UnavailableError | NotFoundError)
        except Exception:
            _log.exception("still serving %s: the new choice could not be opened", _names(serving))
            return True
        self._app.dataplane, self._refused = opened, ""
        _log.warning("serving %s, after %s", _names(opened), _names(serving))
        if serving is not None:
            task = asyncio.get_running_loop().create_task(self._retire(serving))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        return True

    async def _retire(self, old: Dataplane) -> None:
        await old.retire()
        for ref in old.roles.models:
            if self._app.dataplane is not None and ref not in self._app.dataplane.roles.models:
                self._telemetry.forget(ref)


def _identity(roles: Roles) -> tuple[object, ...]:
    """What answers, whatever it is called by: each question's reference and digest."""
    asked = (roles.intent, roles.tagging, *(model for model, _ in roles.phases))
    return tuple(None if model is None else (model.ref, model.bundle.digest) for model in asked)


def _names(dataplane: Dataplane | None) -> str:
    return "nothing" if dataplane is None else ", ".join(dataplane.roles.models)
