"""Small judged lists for the tests of tuning."""

from __future__ import annotations

import numpy as np


def lists(n_queries: int, seed: int) -> str:
    rng = np.random.default_rng(seed)
    lines = []
    for query in range(n_queries):
        for _ in range(6):
            x = rng.normal(size=3)
            label = int(np.clip(np.round(x[0] - x[1] + rng.normal(0, 0.7)), 0, 2))
            lines.append(f"{label} qid:{query} 1:{x[0]:.3f} 2:{x[1]:.3f} 3:{x[2]:.3f}")
    return "\n".join(lines) + "\n"
