"""What a batch will cost: learned from how long batches took, so that the batcher can plan."""

from __future__ import annotations

import numpy as np

from models.errors import BundleError
from registry import golden
from registry.bundle import Bundle
from registry.evaluation import Report

_UNIT = 64.0
"""Cells that weigh as much in learning as the batch itself; a few short texts, a list."""
_RATE = 0.1
_RATE_DOWN = 0.3
"""Other programs and a late wake-up only ever lengthen a batch: a shorter time is believed sooner."""
_MOST_OFF = 3.0
"""A batch that took longer than this many times what was expected tells of the machine, not of the model."""
_MEASURED = (("batch_1", "batch_32", 1, 32), ("list_10", "list_1000", 10, 1000))


class Cost:
    """Seconds of one batch: a fixed part, a part for each cell (token, candidate), a part for each cell of padding.

    The three are learned by normalised least mean squares (Haykin 2002, "Adaptive Filter Theory", equation 6.11), held
    at or above zero. All are 0 where nothing is known yet.
    """

    def __init__(self, fixed_s: float = 0.0, cell_s: float = 0.0, padding_s: float = 0.0) -> None:
        self.fixed_s = fixed_s
        self.cell_s = cell_s
        self.padding_s = padding_s

    @classmethod
    def measured(cls, bundle: Bundle) -> Cost:
        """What the bundle's evaluation says of small and large batches, for texts as long as its golden rows."""
        try:
            latency = Report.load(bundle.path).served.latency
        except BundleError:  # the first batches will tell
            return cls()
        for few, many, n_few, n_many in _MEASURED:
            if few in latency and many in latency:
                few_s, many_s = latency[few].model_p50_ms / 1e3, latency[many].model_p50_ms / 1e3
                each_s = max(0.0, many_s - few_s) / (n_many - n_few)
                is_text = bundle.manifest.signature.layout == "rows"
                n_cells = np.mean([row.encoded.length for row in golden.read(bundle)]) if is_text else 1.0
                return cls(max(0.0, few_s - n_few * each_s), each_s / max(float(n_cells), 1.0))
        return cls()

    def seconds(self, n_cells: int, n_padding: int = 0) -> float:
        """Expect a batch of so many cells, beside its padding, to take so long."""
        return self.fixed_s + self.cell_s * n_cells + self.padding_s * n_padding

    def learn(self, n_cells: int, n_padding: int, seconds: float) -> None:
        """Learn from a batch that took `seconds`."""
        cells, padding = n_cells / _UNIT, n_padding / _UNIT
        expected_s = self.seconds(n_cells, n_padding)
        rate = 1.0 if not expected_s else _RATE if seconds > expected_s else _RATE_DOWN
        off_s = (min(seconds, _MOST_OFF * expected_s) if expected_s else seconds) - expected_s
        step = rate * off_s / (1 + cells**2 + padding**2)
        self.fixed_s = max(0.0, self.fixed_s + step)
        self.cell_s = max(0.0, self.cell_s + step * cells / _UNIT)
        self.padding_s = max(0.0, self.padding_s + step * padding / _UNIT)
