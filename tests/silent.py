"""A recorder for tests that train: it shows nothing, and keeps what is said."""

from __future__ import annotations


class Silent:
    def __init__(self) -> None:
        self.said: list[str] = []

    def metrics(self, values: object, step: int) -> None: ...

    def progress(self, stage: str, done: int, total: int) -> None: ...

    def say(self, sentence: str) -> None:
        self.said.append(sentence)
