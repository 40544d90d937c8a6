"""How much injected noise the checks find, beside cleanlab in the same run, and what a whole report costs.

python -m experiments.data_check.run --data ../shared/data --peer PYTHON [--part noise|cost]

PYTHON: of an environment with cleanlab (see peer.py).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from experiments.report import save
from models.tagging import spans
from training import demo_shop, intent, ranking, tagging
from training.check import check_data
from training.checks.confident import cross_validated, numbered, stratified_folds
from training.checks.judged import judged, with_lexical
from training.checks.judgements import judgement_suspects
from training.checks.label_noise import label_suspects, tfidf
from training.checks.tag_noise import tag_features, tag_suspects
from training.config import parse
from training.data.splits import TaggingRows

HERE = Path(__file__).parent
FAMILIES = {
    "intent": (intent, {"task": "intent", "model": {"kind": "linear"}}),
    "tagging": (tagging, {"task": "tagging", "model": {"kind": "transformer"}}),
    "ranking": (ranking, {"task": "ranking", "model": {"kind": "xgboost"}}),
}


def train_rows(family: str, directory: Path):
    module, raw = FAMILIES[family]
    return module.read(directory, parse(raw, family)).train


def figures(doubted: Sequence[int], is_wrong: NDArray[np.bool_], seconds: float) -> dict[str, float]:
    """Precision and recall of the doubted examples; rows that were wrong before count against precision."""
    n_right = int(is_wrong[np.asarray(doubted, dtype=np.int64)].sum())
    return {
        "doubted": len(doubted),
        "precision": round(n_right / max(len(doubted), 1), 4),
        "recall": round(n_right / int(is_wrong.sum()), 4),
        "cpu_seconds": round(seconds, 2),
    }


def peer(python: str, **exchange) -> tuple[NDArray[np.int64], float]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "exchange.npz"
        np.savez(path, **exchange)
        subprocess.run([python, HERE / "peer.py", path], check=True)
        answer = np.load(path)
        return answer["doubted"], float(answer["seconds"])


def chosen(n: int, share: float, seed: int) -> tuple[np.random.Generator, NDArray[np.bool_]]:
    generator = np.random.default_rng(seed)
    is_wrong = np.zeros(n, dtype=bool)
    is_wrong[generator.choice(n, int(n * share), replace=False)] = True
    return generator, is_wrong


def nearest_labels(texts: Sequence[str], labels_N: NDArray[np.int64], n_labels: int) -> NDArray[np.int64]:
    """The other label whose mean TF-IDF vector is nearest: what a tired person would mistake a text for."""
    matrix = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+").fit_transform(texts)
    means = np.stack([np.asarray(matrix[labels_N == label].mean(axis=0)).ravel() for label in range(n_labels)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    similar = np.asarray(matrix @ means.T)
    similar[np.arange(len(labels_N)), labels_N] = -1
    return similar.argmax(axis=1)


def of_labels(name: str, directory: Path, config: dict, python: str, seed: int, noise: str) -> dict:
    rows = train_rows("tagging" if name == "snips" else "intent", directory)
    texts, (names, true_N) = list(rows.requests()), numbered(rows.labels)
    generator, is_wrong = chosen(len(texts), config["noise"], seed)
    given_N = true_N.copy()
    if noise == "random":
        given_N[is_wrong] = (true_N[is_wrong] + generator.integers(1, len(names), is_wrong.sum())) % len(names)
    else:
        given_N[is_wrong] = nearest_labels(texts, true_N, len(names))[is_wrong]
    started = time.process_time()
    _, found = label_suspects(texts, [names[label] for label in given_N], seed)
    result = {"rankyard": figures(found.rows, is_wrong, time.process_time() - started)}
    probabilities = cross_validated(tfidf(texts), given_N, stratified_folds(given_N, seed))
    doubted, seconds = peer(python, kind="labels", labels=given_N, probabilities=probabilities)
    result["cleanlab on the same probabilities"] = figures(doubted, is_wrong, seconds)
    if seed in config["pipeline_seeds"].get(name, config["seeds"]):
        doubted, seconds = peer(python, kind="pipeline", labels=given_N, texts=np.array(texts))
        result["cleanlab on TF-IDF and logistic regression"] = figures(doubted, is_wrong, seconds)
    return {"data": name, "kind": "labels", "noise": noise, "seed": seed, "wrong": int(is_wrong.sum()), **result}


def of_tags(name: str, directory: Path, config: dict, python: str, seed: int) -> dict:
    rows = train_rows("tagging", directory)
    found_spans = [(row, span) for row, tags in enumerate(rows.tags) for span in spans(tags)]
    types = sorted({span.type for _, span in found_spans})
    generator, is_wrong_span = chosen(len(found_spans), config["noise"], seed)
    tags = [list(sentence) for sentence in rows.tags]
    is_wrong = [[False] * len(sentence) for sentence in tags]
    for place in np.flatnonzero(is_wrong_span):
        row, span = found_spans[place]
        # One entity in three is overlooked, the others are taken for another type.
        other = "O" if generator.random() < 1 / 3 else str(generator.choice([t for t in types if t != span.type]))
        for word in range(span.start, span.end):
            tags[row][word] = other if other == "O" else f"{'B' if word == span.start else 'I'}-{other}"
            is_wrong[row][word] = True
    noisy = TaggingRows(rows.tokens, tuple(map(tuple, tags)), rows.labels)
    wrong_W = np.array([wrong for sentence in is_wrong for wrong in sentence])
    started = time.process_time()
    _, _, found = tag_suspects(noisy, seed)
    result = {"rankyard": figures(found.rows, wrong_W, time.process_time() - started)}
    _, given_W = numbered([tag for sentence in tags for tag in sentence])
    ends = np.cumsum([len(sentence) for sentence in tags])
    folds = np.repeat(stratified_folds(np.zeros(len(tags), dtype=np.int64), seed), np.diff([0, *ends]))
    probabilities = cross_validated(tag_features(noisy), given_W, folds)
    doubted, seconds = peer(python, kind="tags", labels=given_W, probabilities=probabilities, ends=ends)
    result["cleanlab on the same probabilities"] = figures(doubted, wrong_W, seconds)
    return {"data": name, "kind": "tags", "noise": "spans", "seed": seed, "wrong": int(wrong_W.sum()), **result}


def of_lists(name: str, directory: Path, config: dict, python: str, seed: int) -> dict:
    rows = train_rows("ranking", directory)
    data = with_lexical(judged(rows, rows.feature_names, seed), rows)
    n_grades = int(data.labels.max()) + 1
    generator, is_wrong = chosen(len(data.labels), config["noise"], seed)
    data.labels[is_wrong] = (data.labels[is_wrong] + generator.integers(1, n_grades, is_wrong.sum())) % n_grades
    started = time.process_time()
    doubted, predictions = judgement_suspects(data, seed)
    result = {"rankyard": figures(doubted, is_wrong, time.process_time() - started)}
    doubted, seconds = peer(python, kind="lists", labels=data.labels, predictions=predictions, n=len(doubted))
    result["cleanlab on the same predictions, as many"] = figures(doubted, is_wrong, seconds)
    return {"data": name, "kind": "relevance", "noise": "random", "seed": seed, "wrong": int(is_wrong.sum()), **result}


def cost(name: str, directory: Path) -> dict:
    """CPU seconds of reading and reporting, on one thread."""
    started, cpu = time.perf_counter(), time.process_time()
    report = check_data(directory)
    html = report.html()
    return {
        "data": name,
        "rows": report.splits["train"]["rows"],
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "wall_seconds": round(time.perf_counter() - started, 2),
        "findings": len(report.findings),
        "warnings": sum(finding.severity == "warning" for finding in report.findings),
        "page_kb": round(len(html) / 1000),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--part", choices=("noise", "cost"), default="noise")
    options = parser.parse_args()
    config = yaml.safe_load((HERE / "config.yaml").read_text())
    command = f"python -m experiments.data_check.run --data ../shared/data --peer PYTHON --part {options.part}"
    with tempfile.TemporaryDirectory() as shop:
        demo_shop.generate(Path(shop))

        def directory(name: str) -> Path:
            return Path(shop) / name.removeprefix("demo_") if name.startswith("demo_") else options.data / name

        results = []
        if options.part == "cost":
            cost("imports", directory("demo_intent")), cost("imports", directory("demo_ranking"))
            results = [cost(name, directory(name)) for name in config["cost"]]
            save(HERE / "results" / "cost.json", [], command, results=results)
            return
        for seed in config["seeds"]:
            arguments = (config, options.peer, seed)
            for name in config["texts"]:
                for noise in ("random", "confusable"):
                    results.append(of_labels(name, directory(name), *arguments, noise))
                    print(results[-1], file=sys.stderr, flush=True)
            for name in config["tags"]:
                results.append(of_tags(name, directory(name), *arguments))
                print(results[-1], file=sys.stderr, flush=True)
            for name in config["lists"]:
                results.append(of_lists(name, directory(name), *arguments))
                print(results[-1], file=sys.stderr, flush=True)
            save(HERE / "results" / "noise.json", [], command, results=results)


if __name__ == "__main__":
    main()
