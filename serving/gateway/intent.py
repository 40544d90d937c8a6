"""Intent in the gateway: which model answers it."""

from __future__ import annotations

from serving.gateway.published import Published
from serving.runtime.protocol import ServedModel


def choose(published: Published, ref: str | None, tagging: ServedModel | None) -> ServedModel | None:
    """The model of `ref`, else the only published champion, else the tagging model where it is joint with intent."""
    if ref is not None:
        served = published.open(ref)
        return served if _is_joint(served) else published.expect(served, "intent", "models.intent")
    return published.only_champion("intent") or (tagging if tagging is not None and _is_joint(tagging) else None)


def _is_joint(served: ServedModel) -> bool:
    manifest = served.bundle.manifest
    return manifest.family == "tagging" and manifest.labels is not None
