"""BentoML: one service, its adaptive batching on for texts."""

import bentoml
from work import SETTINGS, Intent, Ranker

_TRAFFIC = {"timeout": 30}


@bentoml.service(
    workers=SETTINGS["workers"], traffic=_TRAFFIC, metrics={"enabled": False}, logging={"access": {"enabled": False}}
)
class Understand:
    """POST /understand {"texts": [text]}."""

    def __init__(self) -> None:
        self._model = Intent()

    @bentoml.api(
        batchable=True, max_batch_size=SETTINGS.get("batch", 16), max_latency_ms=SETTINGS.get("latency_ms", 1000)
    )
    def understand(self, texts: list[str]) -> list[dict]:
        """Answer a batch."""
        return self._model.answer(texts)


@bentoml.service(
    workers=SETTINGS["workers"], traffic=_TRAFFIC, metrics={"enabled": False}, logging={"access": {"enabled": False}}
)
class Rank:
    """POST /rank {"candidates": [{"id", "features"}]}."""

    def __init__(self) -> None:
        self._model = Ranker()

    @bentoml.api
    def rank(self, candidates: list[dict]) -> dict:
        """Order one list."""
        return {"ranking": self._model.answer(candidates)}
