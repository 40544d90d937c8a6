"""Tagging in the gateway: which model answers it."""

from __future__ import annotations

from serving.gateway.published import Published
from serving.runtime.protocol import ServedModel


def choose(published: Published, ref: str | None) -> ServedModel | None:
    """The model of `ref`, else the only published champion; None where there is none."""
    if ref is not None:
        return published.expect(published.open(ref), "tagging", "models.tagging")
    return published.only_champion("tagging")
