"""What computing real tokens alone saves: one graph, with its padding told from its tokens and without.

python -m experiments.packing.run BUNDLE TEXTS [--quick]    writes results/packing.json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import command
from experiments.report import print_rows, save
from experiments.turns import in_turns, medians, ratios, row, series
from models.batch import Encoded, collate
from models.model import open_model
from models.session import OnnxSession
from registry.bundle import open_bundle

HERE = Path(__file__).parent
BATCH_SIZES = (1, 8, 32)
MASK = "attention_mask"
PACKED, PADDED, SORTED = "packed", "padded", "packed, batches of like length"


def main() -> None:
    """Time both variants of a bundle on batches of texts as they come."""
    parser = command.options(__doc__)
    parser.add_argument("bundle", type=Path, help="an intent model with float32 and int8")
    parser.add_argument("texts", type=Path, help="JSON lines with `text`")
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    model = open_model(bundle.path, bundle.manifest)
    encoded = [model.encode(text) for text in command.some_texts(options.texts)]
    seconds, repetitions = (0.2, 2) if options.quick else (1.0, 5)
    contestants: dict[str, Callable[[], dict[str, Any]]] = {}
    for variant in ("float32", "int8"):
        session = OnnxSession(bundle.model_file(variant))
        for size in BATCH_SIZES:
            ways = {PACKED: encoded, PADDED: encoded, SORTED: sorted(encoded, key=lambda one: one.length)}
            for way, requests in ways.items():
                batches = [collate(part, bundle.manifest.signature) for part in _batches(requests, size)]
                if way == PADDED:
                    batches = [batch | {MASK: np.ones_like(batch[MASK])} for batch in batches]
                contestants[f"{variant} {size} {way}"] = lambda session=session, batches=batches: _texts_per_s(
                    session, batches, seconds
                )
    found = in_turns(contestants, repetitions)
    rows = []
    for variant in ("float32", "int8"):
        for size in BATCH_SIZES:
            speeds = {way: series(found[f"{variant} {size} {way}"], "texts_per_s") for way in (PACKED, PADDED, SORTED)}
            data = f"{options.texts.parent.name}, batches of {size} as they come, one core"
            for way, other in ((PADDED, "padded"), (SORTED, "sorted by length")):
                values = ratios(speeds[PACKED], speeds[way])
                rows.append(row(data, "packed transformer", f"times the texts/s of {other}", values, served_as=variant))
    print_rows(rows)
    if not options.quick:
        lengths = [one.length for one in encoded]
        details = {
            "tokens": {"mean": round(float(np.mean(lengths)), 2), "longest": max(lengths)},
            "medians": medians(found, ("texts_per_s",)),
        }
        save(HERE / "results" / "packing.json", rows, "python -m experiments.packing.run BUNDLE TEXTS", **details)


def _batches(requests: Sequence[Encoded], size: int) -> list[Sequence[Encoded]]:
    """All in batches, those in another order than they came, so that a short run sees every length."""
    batches = [requests[first : first + size] for first in range(0, len(requests), size)]
    return [batches[i] for i in np.random.default_rng(1).permutation(len(batches))]


def _texts_per_s(session: OnnxSession, batches: Sequence[dict[str, Any]], seconds: float) -> dict[str, float]:
    """By the processor's time, which other programs do not lengthen; over whole rounds of all batches."""
    n_texts = 0
    begin_s = time.thread_time()
    spent_s = 0.0
    while spent_s < seconds:
        for batch in batches:
            session.run(batch)
            n_texts += len(batch[MASK])
        spent_s = time.thread_time() - begin_s
    return {"texts_per_s": n_texts / spent_s}


if __name__ == "__main__":
    main()
