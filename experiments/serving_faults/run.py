"""A gateway on Triton under load, whose server is killed every ten seconds, or stands still for a moment.

python -m experiments.serving_faults.run [--parts killed,stalled] [--seconds S] [--rate N]

Writes results/triton_killed.json and results/triton_stalled.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.report import save
from experiments.serving_faults.killed import killed
from experiments.serving_faults.place import on_triton
from experiments.serving_faults.stalled import stalled

HERE = Path(__file__).parent


def main() -> None:
    """Train, deploy, and hurt the server in the ways that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="stalled,killed", help="default: both")
    parser.add_argument("--seconds", type=float, default=120.0, help="of the part that kills")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    options = parser.parse_args()
    with on_triton() as place:
        for part in options.parts.split(","):
            if part == "killed":
                rows, found = killed(place, options.seconds, options.rate)
            else:
                rows, found = stalled(place, options.rate)
            command = f"python -m experiments.serving_faults.run --parts {part}"
            save(HERE / "results" / f"triton_{part}.json", rows, command, found=found)
            for row in rows:
                print(f"{row.data} | {row.metric}: {row.value:g} [{row.low:g}, {row.high:g}]", flush=True)


if __name__ == "__main__":
    main()
