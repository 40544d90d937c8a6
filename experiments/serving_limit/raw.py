"""The model without any server: texts in, answers out, as fast as this process can."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from models.batch import collate, split
from models.model import open_model
from models.session import OnnxSession
from registry.bundle import Bundle, open_bundle

WINDOW = 256
"""Texts that are sorted by length before they are cut into batches."""


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Workers that call the model at once, threads of each call, texts of a call, whether those are alike in length."""

    n_workers: int
    n_threads: int
    batch_size: int
    is_sorted: bool

    def __str__(self) -> str:
        """Short, for tables."""
        return f"{self.n_workers} x {self.n_threads}, {'sorted ' if self.is_sorted else ''}batches of {self.batch_size}"


def arrangements(n_cores: int, batch_sizes: Sequence[int]) -> list[Arrangement]:
    """Every way to use the cores: one worker on all of them, one on each, and one alone."""
    ways = sorted({(1, 1), (1, n_cores), (n_cores, 1)})
    return [
        Arrangement(*way, size, is_sorted)
        for way in ways
        for size in batch_sizes
        for is_sorted in ((False, True) if size > 1 else (False,))
    ]


class Raw:
    """An opened model, whose answers are those of the gateway."""

    def __init__(self, bundle: Path) -> None:
        self._bundle: Bundle = open_bundle(bundle)
        self._model = open_model(self._bundle.path, self._bundle.manifest)
        self._sessions: dict[int, OnnxSession] = {}

    def run(
        self, texts: Iterator[str], arrangement: Arrangement, seconds: float, pause_s: float = 0.0
    ) -> dict[str, float]:
        """Answer texts for so long: texts a second, and the milliseconds of the median call.

        pause_s: before each call, as callers pause; a call right after another one finds the caches warm.
        """
        session = self._session(arrangement.n_threads)
        lock = threading.Lock()
        n_texts, times_s = 0, []
        begin_s = time.perf_counter()
        end_s = begin_s + seconds

        def work() -> None:
            nonlocal n_texts
            while time.perf_counter() < end_s:
                with lock:
                    window = list(islice(texts, WINDOW if arrangement.is_sorted else arrangement.batch_size))
                n_done, took_s = self._window(window, session, arrangement.batch_size, end_s, pause_s)
                with lock:
                    n_texts += n_done
                    times_s.extend(took_s)

        workers = [threading.Thread(target=work) for _ in range(arrangement.n_workers)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return {
            "texts_per_s": n_texts / (time.perf_counter() - begin_s),
            "p50_ms": float(np.median(times_s)) * 1e3,
        }

    def _window(
        self, texts: Sequence[str], session: OnnxSession, batch_size: int, end_s: float, pause_s: float
    ) -> tuple[int, list[float]]:
        """Answer texts in batches of like length; gives how many before `end_s`, and the seconds of each batch.

        A batch's seconds run from text to answer; texts that are sorted first are encoded first.
        """
        signature = self._bundle.manifest.signature
        is_sorted = len(texts) > batch_size
        ready = (
            sorted(((self._model.encode(text), text) for text in texts), key=lambda one: one[0].length)
            if is_sorted
            else []
        )
        n_done, times_s = 0, []
        for first in range(0, len(texts), batch_size):
            if pause_s:
                time.sleep(pause_s)
            begin_s = time.perf_counter()
            if begin_s > end_s:
                break
            batch = ready[first : first + batch_size] or [
                (self._model.encode(text), text) for text in texts[first : first + batch_size]
            ]
            encoded = [one for one, _ in batch]
            outputs = split(session.run(collate(encoded, signature)), encoded, signature)
            self._model.decode_batch([text for _, text in batch], encoded, outputs)
            times_s.append(time.perf_counter() - begin_s)
            n_done += len(batch)
        return n_done, times_s

    def _session(self, n_threads: int) -> OnnxSession:
        if n_threads not in self._sessions:
            path = self._bundle.model_file(self._bundle.variant)
            self._sessions[n_threads] = OnnxSession(path, n_threads=n_threads)
        return self._sessions[n_threads]
