"""lleaves in a process of its own, as it needs an older llvmlite than numba does.

python -m experiments.serving_limit.llvm TREES.txt CODE.elf FEATURES

Reads lines of `SIZE SECONDS` and answers each with a line of JSON: `ms` of the median call, `scores` of the first list.
"""

from __future__ import annotations

import json
import sys

import lleaves

from experiments.serving_limit.lists import made, median_ms


def main() -> None:
    """Answer until the input ends."""
    text, code, n_features = sys.argv[1:]
    model = lleaves.Model(model_file=text)
    model.compile(cache=code)
    for line in sys.stdin:
        size, seconds = line.split()
        lists = made(int(size), int(n_features))
        ms = median_ms(lambda features_DF: model.predict(features_DF, n_jobs=1), lists, float(seconds))
        print(json.dumps({"ms": ms, "scores": model.predict(lists[0], n_jobs=1).tolist()}), flush=True)


if __name__ == "__main__":
    main()
