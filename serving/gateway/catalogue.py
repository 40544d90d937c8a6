"""A shop's catalogue, of whose titles everything is computed before anybody asks: a title costs milliseconds, once.

The work is done beside the requests, in a thread that gives way to theirs. The catalogue's version is the digest of its
file: when another one takes its place, or a promotion brings another encoder, what is new is computed, and what was
known stays (`models.text_cache`).
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import logging
import os
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from models.errors import ConfigError, WorkspaceError
from models.features import PairFeaturizer
from models.text_cache import TextCache
from serving.gateway import vectors
from serving.gateway.app import App
from serving.gateway.config import CatalogueConfig
from serving.gateway.dataplane import Dataplane

_NICE = 15
"""How far the work steps back behind that of requests, as `nice` counts."""
_SHOWN = 12

_log = logging.getLogger("rankyard.gateway")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The distinct titles of one version of the file."""

    version: str
    titles: tuple[str, ...]


def read(file: Path) -> Catalogue:
    """Read `.jsonl` (or `.jsonl.gz`) with a `title` a line; ConfigError names the first line that has none."""
    try:
        content = file.read_bytes()
        lines = (gzip.decompress(content) if file.suffix == ".gz" else content).decode().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(
            f"catalogue.file must be a readable file of JSON lines, got {file} ({error}); correct it",
            field="catalogue.file",
        ) from error
    titles: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        product = None
        with suppress(ValueError, RecursionError):
            product = json.loads(line)
        title = product.get("title") if isinstance(product, dict) else None
        if not isinstance(title, str) or not _is_whole(title):
            raise ConfigError(
                f"every line of catalogue.file must be an object with a title, {file}:{number} has {line[:60]!r}; "
                "correct it",
                field="catalogue.file",
            )
        titles[title] = None
    return Catalogue(hashlib.sha256(content).hexdigest()[:_SHOWN], tuple(titles))


class Preparation:
    """Keeps ready what rankers compute of a catalogue's titles, whatever `app` serves; belongs to one event loop."""

    def __init__(self, app: App, config: CatalogueConfig, every_s: float, texts: TextCache) -> None:
        self._app = app
        self._texts = texts
        self._file, self._vectors = config.file, config.vectors
        self._every_s = every_s
        self._stopping = threading.Event()

    async def start(self) -> None:
        """Read the file; ConfigError where that cannot be."""
        self._seen = _stamp(self._file)
        self._catalogue = await asyncio.to_thread(read, self._file)

    async def run(self) -> None:
        """Look at the file and at what is served every `every_s` seconds, until cancelled.

        Where a new version cannot be read the log says so, and the one before stands.
        """
        prepared: tuple[Catalogue, Dataplane] | None = None
        loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1, "catalogue", _step_back)
        try:
            while True:
                dataplane = self._app.dataplane
                if dataplane is not None and prepared != (self._catalogue, dataplane):
                    prepared = (self._catalogue, dataplane)
                    await loop.run_in_executor(thread, self._prepare, *prepared)
                await asyncio.sleep(self._every_s)
                if (stamp := _stamp(self._file)) != self._seen:
                    self._seen = stamp
                    try:
                        self._catalogue = await asyncio.to_thread(read, self._file)
                    except ConfigError as error:
                        _log.error("still with catalogue %s: %s", self._catalogue.version, error.message)
        finally:
            self._stopping.set()
            thread.shutdown(wait=False)

    def _prepare(self, catalogue: Catalogue, dataplane: Dataplane) -> None:
        """Compute what is not known yet; ends early where another choice of models takes over, or the gateway ends."""
        started, n_dropped = time.monotonic(), self._texts.n_dropped
        for featurizer in dataplane.featurizers:
            if self._restored(catalogue, featurizer):
                continue
            found: list[NDArray[np.float32] | None] = []
            for title in catalogue.titles:
                if self._stopping.is_set() or self._app.dataplane is not dataplane:
                    return
                vector_E = featurizer.vector(title)
                if self._vectors is not None:
                    found.append(vector_E)
            self._keep(catalogue, featurizer, found)
        n_titles, seconds = len(catalogue.titles), time.monotonic() - started
        if self._texts.n_dropped == n_dropped:
            _log.warning("catalogue %s: %d titles ready after %.1f s", catalogue.version, n_titles, seconds)
        else:
            _log.warning(
                "catalogue %s: %d titles take more than cache.max_text_bytes, %d texts are known now; allow more",
                catalogue.version,
                n_titles,
                len(self._texts),
            )

    def _restored(self, catalogue: Catalogue, featurizer: PairFeaturizer) -> bool:
        """Take what is kept on disk; False where there is nothing."""
        if self._vectors is None:
            return False
        vectors_NE = vectors.load(self._vectors, featurizer.encoder_digest, catalogue.version)
        if vectors_NE is None or len(vectors_NE) != len(catalogue.titles):
            return False
        for title, vector_E in zip(catalogue.titles, vectors_NE, strict=True):
            featurizer.remember(title, None if np.isnan(vector_E[0]) else vector_E.copy())
        return True

    def _keep(
        self, catalogue: Catalogue, featurizer: PairFeaturizer, found: Sequence[NDArray[np.float32] | None]
    ) -> None:
        """Write what was computed to disk, where that is wanted and possible."""
        size = next((len(vector_E) for vector_E in found if vector_E is not None), 0)
        if self._vectors is None or not size:
            return
        none_E = np.full(size, np.nan, np.float32)
        vectors_NE = np.stack([none_E if vector_E is None else vector_E for vector_E in found])
        try:
            vectors.save(self._vectors, featurizer.encoder_digest, catalogue.version, vectors_NE)
        except WorkspaceError as error:
            _log.error("the vectors of catalogue %s are not kept: %s", catalogue.version, error.message)


class TextSeries(Collector):
    """What is known of texts, for Prometheus."""

    def __init__(self, texts: TextCache) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        """Look at the cache as it is now."""
        asked = CounterMetricFamily(
            "rankyard_text_cache", "Texts that rankers asked for, by whether they were known.", labels=["result"]
        )
        asked.add_metric(["hit"], self._texts.n_hits)
        asked.add_metric(["miss"], self._texts.n_misses)
        yield asked
        yield GaugeMetricFamily("rankyard_text_cache_texts", "Texts that are known.", len(self._texts))
        yield GaugeMetricFamily("rankyard_text_cache_bytes", "What the known texts take.", self._texts.n_bytes)


def _is_whole(title: str) -> bool:
    """Whether a title has no half of a character, which no encoder reads."""
    return all(not "\ud800" <= letter <= "\udfff" for letter in title)


def _step_back() -> None:
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What changes when a file is replaced or rewritten; None without one."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
