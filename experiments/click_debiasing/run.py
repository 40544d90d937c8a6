"""How much of what position bias takes from a ranker comes back, on simulated clicks whose truth is known.

python -m experiments.click_debiasing.run --data DIR     writes results/mq2008.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
import yaml
from numpy.typing import NDArray

from experiments.report import Row, save
from models.config import read
from models.metrics import ranking_metrics
from models.ranking import RankingModel
from training import ranking
from training.boosting import boosting_parameters
from training.clicks import judged_by_clicks, propensities
from training.config import RankingConfig, parse
from training.data.lists import matrix
from training.data.splits import Impressions, RankingRows, Splits
from training.fit import Checkpoint

HERE = Path(__file__).parent
ARMS: Mapping[str, Mapping[str, Any]] = {
    "raw clicks": {"debias": "none"},
    "em": {"debias": "ips", "propensity": "em"},
    "intervention": {"debias": "ips", "propensity": "intervention"},
    "known propensities": {"debias": "ips"},
}
TRUTH = "true labels"
N_RESAMPLES = 2000


class Silent:
    """A recorder that keeps nothing."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Nothing."""

    def say(self, sentence: str) -> None:
        """Nothing."""


def main() -> None:
    """Simulate, train every arm on every fold and seed, and save what the test splits say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="holds the folders that config.yaml names")
    options = parser.parse_args()
    study = yaml.safe_load((HERE / "config.yaml").read_text())
    ndcg: dict[str, list[NDArray[np.float64]]] = {name: [] for name in (TRUTH, *ARMS, "initial")}
    found: dict[str, list[list[float]]] = {"em": [], "intervention": []}
    started = time.perf_counter()
    for folder in study["folds"]:
        by_arm: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ndcg}
        for seed in study["seeds"]:
            of_seed, curves = run(options.data / folder, study, seed)
            for name, values_Q in of_seed.items():
                by_arm[name].append(values_Q)
            for name, curve in curves.items():
                found[name].append(curve)
        for name, values in by_arm.items():
            ndcg[name].append(np.mean(values, axis=0))
        print(folder, {name: round(float(np.mean(values)), 4) for name, values in by_arm.items()}, flush=True)
    n_runs = len(study["folds"]) * len(study["seeds"])
    report(study, {name: np.concatenate(parts) for name, parts in ndcg.items()}, found, started, n_runs)


def run(
    folder: Path, study: Mapping[str, Any], seed: int
) -> tuple[dict[str, NDArray[np.float64]], dict[str, list[float]]]:
    """NDCG@10 of each arm on the test queries with a relevant document, and the first ten propensities found."""
    config = parse(read(study["configuration"], [f"training.seed={seed}", "training.n_threads=1"]), "ranking")
    assert isinstance(config, RankingConfig)
    judged = ranking.read(folder, with_training(config, debias=None, propensity=None))
    assert judged.test is not None
    rng = np.random.default_rng(seed)
    initial = initial_ranker(judged.train, config, study["initial_part"], rng)
    logs = Splits(*(clicked(rows, initial, study, rng) for rows in (judged.train, judged.valid)), judged.test)
    longest = max(int(one.positions.max()) for one in logs.train.clicks or ())
    known = tuple((np.arange(1, longest + 1) ** -study["eta"]).tolist())
    results = {
        "initial": ndcg_of(judged.test, np.split(initial.inplace_predict(features_of(judged.test)), ends(judged.test))),
        TRUTH: trained(with_training(config, debias=None, propensity=None), judged),
    }
    curves = {}
    for name, settings in ARMS.items():
        arm = with_training(config, **{"propensity": None, **settings})
        if name == "known propensities":
            arm = with_training(config, propensity=known)
        results[name] = trained(arm, judged_by_clicks(logs, arm.training))
        if name in ("em", "intervention"):
            curves[name] = propensities(logs.train, arm.training)[:10].tolist()
    return results, curves


def with_training(config: RankingConfig, **changes: Any) -> RankingConfig:
    raw = config.model_dump()
    raw["training"] |= changes
    return RankingConfig.model_validate(raw)


def trained(config: RankingConfig, splits: Splits[RankingRows]) -> NDArray[np.float64]:
    fitted: Any = ranking.fit(config, splits, Silent(), Checkpoint(HERE / "none", ""))
    model, test = RankingModel(fitted.contents), splits.test
    assert test is not None
    return ndcg_of(test, [one["score"] for one in fitted.outputs([model.encode(request) for request in test.lists])])


def ndcg_of(rows: RankingRows, scores: list[Any]) -> NDArray[np.float64]:
    ratio = ranking_metrics(rows.labels, scores)["ndcg@10"]
    return ratio.numerator_N[ratio.denominator_N > 0]


def initial_ranker(train: RankingRows, config: RankingConfig, part: float, rng: np.random.Generator) -> xgboost.Booster:
    """A ranker of a few judged queries, of those that have something to learn from."""
    telling = np.flatnonzero([labels_D.any() for labels_D in train.labels])
    few = train.take(np.sort(rng.choice(telling, max(1, round(part * len(train))), replace=False)))
    numbers = np.repeat(np.arange(len(few)), [len(labels_D) for labels_D in few.labels])
    rows = xgboost.DMatrix(features_of(few), np.concatenate(few.labels), qid=numbers)
    return xgboost.train({**boosting_parameters(config), "min_child_weight": 0.1}, rows, 20)


def clicked(
    rows: RankingRows, initial: xgboost.Booster, study: Mapping[str, Any], rng: np.random.Generator
) -> RankingRows:
    """The rows as a click log: pages in the order of the initial ranker, some with two neighbours swapped."""
    scores = np.split(initial.inplace_predict(features_of(rows)), ends(rows))
    highest = max(float(labels_D.max()) for labels_D in rows.labels)
    clicks = []
    for labels_D, scores_D in zip(rows.labels, scores, strict=True):
        n_pages, n_shown = study["pages_per_query"], len(labels_D)
        order_SD = np.tile(np.argsort(-(scores_D + rng.normal(0, 1e-6, n_shown)), kind="stable"), (n_pages, 1))
        page = np.flatnonzero(rng.random(n_pages) < study["swapped_part"])
        upper = rng.integers(0, n_shown - 1, len(page))
        order_SD[page, upper], order_SD[page, upper + 1] = order_SD[page, upper + 1], order_SD[page, upper]
        attraction_D = study["noise"] + (1 - study["noise"]) * (2**labels_D - 1) / (2**highest - 1)
        positions_D = np.arange(1, n_shown + 1)
        p_click_SD = positions_D ** -study["eta"] * attraction_D[order_SD]
        clicked_SD = (rng.random(order_SD.shape) < p_click_SD).astype(np.float64)
        clicks.append(Impressions(order_SD.ravel(), np.tile(positions_D, n_pages), clicked_SD.ravel()))
    zeros = tuple(np.zeros_like(labels_D) for labels_D in rows.labels)
    return replace(rows, labels=zeros, clicks=tuple(clicks))


def features_of(rows: RankingRows) -> NDArray[np.float32]:
    found_NF = matrix(rows, rows.feature_names)
    assert found_NF is not None
    return found_NF


def ends(rows: RankingRows) -> NDArray[np.int64]:
    return np.cumsum([len(labels_D) for labels_D in rows.labels])[:-1]


def report(
    study: Mapping[str, Any],
    ndcg: Mapping[str, NDArray[np.float64]],
    found: Mapping[str, list[list[float]]],
    started: float,
    n_runs: int,
) -> None:
    """Save NDCG of each arm, and the part of the gap that comes back; queries are resampled for the intervals."""
    n_queries = len(ndcg[TRUTH])
    chosen_RQ = np.random.default_rng(0).integers(0, n_queries, (N_RESAMPLES, n_queries))
    means = {name: values[chosen_RQ].mean(axis=1) for name, values in ndcg.items()}
    seconds = (time.perf_counter() - started) / n_runs

    def row(metric: str, name: str, value: float, sample: NDArray[np.float64], target: float | None = None) -> Row:
        low, high = np.quantile(sample, [0.025, 0.975]).tolist()
        shown = {"served_as": "float32", "seeds": study["seeds"], "seconds": seconds, "target": target}
        return Row("mq2008, clicks", f"{study['configuration']}, {name}", metric, value, low, high, **shown)

    rows = [row("ndcg@10", name, float(ndcg[name].mean()), means[name]) for name in ndcg]
    for name in [name for name in ARMS if name != "raw clicks"]:
        raw, best = float(ndcg["raw clicks"].mean()), float(ndcg[TRUTH].mean())
        value = (float(ndcg[name].mean()) - raw) / (best - raw)
        sample = (means[name] - means["raw clicks"]) / (means[TRUTH] - means["raw clicks"])
        target = study["target"] if name == "em" else None
        rows.append(row("part of the gap recovered", name, value, sample, target))
    truth = (np.arange(1, 11) ** -study["eta"]).tolist()
    curves = {name: np.mean(values, axis=0).round(4).tolist() for name, values in found.items()}
    save(
        HERE / "results" / "mq2008.json",
        rows,
        "python -m experiments.click_debiasing.run --data DIR",
        setting=dict(study),
        propensities={"true": truth, **curves},
    )
    for one in rows:
        print(f"{one.configuration:<40} {one.metric:<28} {one.value:.4f} [{one.low:.4f}, {one.high:.4f}]")


if __name__ == "__main__":
    main()
