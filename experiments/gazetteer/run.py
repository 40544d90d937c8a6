"""What a catalogue's terms are worth to a tagger that meets brands it was not trained on.

python -m experiments.gazetteer.run [VARIANT]...   trains on the demo shop, writes results/VARIANT.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiments import command
from experiments.report import Row, mean_interval, save
from models.bootstrap import interval
from models.metrics import Ratio
from models.model import open_model
from models.session import OnnxSession
from models.tagging import TaggingModel, spans
from registry.bundle import Bundle, open_bundle
from training.data.jsonl import read_tagging_jsonl
from training.demo_shop import generate
from training.evaluate import answer

HERE = Path(__file__).parent


def main() -> None:
    """Run the variants that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", metavar="VARIANT")
    parser.add_argument("--workspace", type=Path, default=Path(".rankyard-gazetteer"))
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text())
    with tempfile.TemporaryDirectory() as directory:
        shop = generate(Path(directory) / "shop")
        write_terms(shop.catalogue, shop.queries / "gazetteer.jsonl", config["fields"])
        for name in options.variants or config["variants"]:
            settings = [*config["set"], *config["variants"][name]]
            runs = [
                train(config["configuration"], seed, shop.queries, settings, options.workspace)
                for seed in config["seeds"]
            ]
            rows = [row(metric, f"{config['configuration']}, {name}", runs) for metric in runs[0]["test"]]
            save(HERE / "results" / f"{name}.json", rows, f"python -m experiments.gazetteer.run {name}", runs=runs)
            for one in rows:
                print(f"{name} {one.metric} {one.value:.4f} [{one.low:.4f}, {one.high:.4f}]")


def write_terms(catalogue: Path, path: Path, fields: list[str]) -> None:
    """Write {"type", "term"} of every value that products have in `fields`."""
    products = [json.loads(line) for line in catalogue.read_text().splitlines()]
    terms = sorted({(field, product[field]) for product in products for field in fields if product[field]})
    path.write_text("".join(json.dumps({"type": kind, "term": term}) + "\n" for kind, term in terms))


def train(configuration: str, seed: int, data: Path, settings: list[str], workspace: Path) -> dict[str, Any]:
    """Train once; gives the figures of the test split with their intervals."""
    overrides = [f"training.seed={seed}", *settings]
    answered = command.train("tagging", configuration, data, "gazetteer-study", workspace, overrides)
    bundle = open_bundle(Path(answered["bundle"]))
    report = command.evaluation(Path(answered["bundle"]))
    served = report["variants"][report["served_variant"]]
    quality = served["quality"]["test"]
    unseen = unseen_brands(bundle, data)
    return {
        "seed": seed,
        "seconds": answered["seconds"],
        "served_as": f"{report['served_variant']}, {served['size_bytes'] / 1e6:.1f} MB",
        "test": {**quality["metrics"], "unseen_brand_recall": unseen.value},
        "intervals": {**quality["intervals"], "unseen_brand_recall": interval(unseen)},
        "n_unseen_brands": int(unseen.denominator_N.sum()),
        "latency": served["latency"],
    }


def unseen_brands(bundle: Bundle, data: Path) -> Ratio:
    """Brands of each test row that no training row has: how many there are, and how many are found exactly."""
    train_rows, test = (read_tagging_jsonl(data / f"{split}.jsonl") for split in ("train", "test"))
    known = {
        tokens[span.start : span.end]
        for tokens, tags in zip(train_rows.tokens, train_rows.tags, strict=True)
        for span in spans(tags)
        if span.type == "brand"
    }
    model = open_model(bundle.path, bundle.manifest)
    if not isinstance(model, TaggingModel):
        raise TypeError("the study trains taggers")
    texts = test.requests()
    answered = answer(model, bundle.manifest, OnnxSession(bundle.model_file(), n_threads=0).run, texts)
    found, there = np.zeros(len(test)), np.zeros(len(test))
    for index, (tokens, tags) in enumerate(zip(test.tokens, test.tags, strict=True)):
        wanted = {span for span in spans(tags) if span.type == "brand" and tokens[span.start : span.end] not in known}
        there[index] = len(wanted)
        one = answered[index]
        found[index] = len(wanted & set(spans(*model.tags([one.encoded], [one.outputs]))))
    return Ratio(found, there)


def row(metric: str, configuration: str, runs: list[dict[str, Any]]) -> Row:
    """Join the runs of all seeds."""
    value, low, high = mean_interval(
        [run["test"][metric] for run in runs], [run["intervals"][metric] for run in runs], independent=False
    )
    return Row(
        data="demo shop",
        configuration=configuration,
        metric=metric,
        value=value,
        low=low,
        high=high,
        seeds=[run["seed"] for run in runs],
        seconds=sum(run["seconds"] for run in runs) / len(runs),
        served_as=runs[0]["served_as"],
    )


if __name__ == "__main__":
    main()
