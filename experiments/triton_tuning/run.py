"""What `rankyard tune triton` finds on this machine for a text model and for a ranker, beside the default.

python -m experiments.triton_tuning.run [--intent BUNDLE] [--quick]    writes results/tuning.json and a picture of each
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from experiments import command
from experiments.report import Row, save
from registry.bundle import Bundle, open_bundle
from registry.deployment import Published, publish

HERE = Path(__file__).parent
QUICK = ["--concurrency", "1,4", "--seconds", "0.3", "--trials", "3", "--repeats", "2"]


def main() -> None:
    """Tune every model of config.yaml."""
    parser = command.options(__doc__)
    parser.add_argument("--intent", type=Path, metavar="BUNDLE", help="default: trained here on the demo shop")
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text())
    with tempfile.TemporaryDirectory(prefix="rankyard-tuning-") as made:
        workspace = Path(made)
        bundles = {
            "intent": open_bundle(options.intent or command.demo_intent(workspace, config["intent"])),
            "ranking": open_bundle(trained_ranker(workspace, config["ranker"])),
        }
        rows, details = [], {}
        for place, (name, sweep) in enumerate(config["sweeps"].items()):
            bundle = bundles[sweep["family"]]
            answer = tuned(workspace, f"study-{place}", bundle, sweep, QUICK if options.quick else config["options"])
            rows.append(row_of(name, sweep, answer, bundle))
            details[name] = {key: answer[key] for key in ("beats_default", "scheduling", "best", "default", "finals")}
            print(f"{name}: {answer['scheduling']}, {rows[-1].value:.3f} [{rows[-1].low:.3f}, {rows[-1].high:.3f}]")
            if not options.quick:
                (HERE / "results").mkdir(exist_ok=True)
                (drawn,) = (workspace / "artifacts" / "triton").glob(f"{answer['run_id']}/**/throughput_over_p99.png")
                shutil.copyfile(drawn, HERE / "results" / f"{sweep['family']}_{sweep['size']}.png")
    if not options.quick:
        reproduced_by = "python -m experiments.triton_tuning.run"
        save(HERE / "results" / "tuning.json", rows, reproduced_by, options=config["options"], sweeps=details)


def tuned(workspace: Path, name: str, bundle: Bundle, sweep: dict[str, Any], options: list[str]) -> dict[str, Any]:
    """Publish a bundle and tune it."""
    publish(workspace / "deployment", name, {"champion": Published("1", bundle)})
    asked = ["--p99-ms", str(sweep["p99_ms"]), "--size", str(sweep["size"]), *options]
    return command.rankyard("tune", "triton", name, "--workspace", str(workspace), *asked)


def row_of(name: str, sweep: dict[str, Any], answer: dict[str, Any], bundle: Bundle) -> Row:
    """The best finalist beside the default, round by round; 1 where the default is the best itself."""
    parts = [1.0]
    if answer["default"] is not None:
        parts = [mine / its for mine, its in zip(answer["best"]["rounds"], answer["default"]["rounds"], strict=True)]
    verdict = "chosen" if answer["beats_default"] else "not chosen: no more in every round"
    return Row(
        data=name,
        configuration="rankyard tune triton",
        metric=f"the best finalist's throughput at a p99 of {sweep['p99_ms']} ms, times the default's ({verdict})",
        value=round(answer["gain"] or 1.0, 4),
        low=round(min(parts), 4),
        high=round(max(parts), 4),
        seeds=list(range(len(parts))),
        seconds=answer["seconds"],
        served_as=bundle.variant,
    )


def trained_ranker(workspace: Path, settings: dict[str, Any]) -> Path:
    """Train on the demo shop."""
    data = command.demo_shop(workspace) / "ranking"
    answer = command.train("ranking", settings["config"], data, "study-ranking", workspace, settings["settings"])
    return Path(answer["bundle"])


if __name__ == "__main__":
    main()
