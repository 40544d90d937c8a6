"""cleanlab on the same rows, in an environment of its own: `pip install cleanlab==2.9.0`.

python peer.py EXCHANGE.npz: reads what `run.py` wrote, adds which rows cleanlab doubts and the seconds it took.
"""

import sys
import time

import cleanlab
import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.regression.rank import get_label_quality_scores
from cleanlab.token_classification.filter import find_label_issues as find_token_issues


def pipeline(texts: list[str], labels: np.ndarray) -> np.ndarray:
    """TF-IDF, logistic regression, five folds: cleanlab's text tutorial, with features that need no network."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    features = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2), token_pattern=r"\S+")
    classifier = LogisticRegression(max_iter=200, C=10.0)
    matrix = features.fit_transform(texts)
    return cross_val_predict(classifier, matrix, labels, cv=5, method="predict_proba")


def main(path: str) -> None:
    given = dict(np.load(path, allow_pickle=False))
    kind, started = str(given["kind"]), time.process_time()
    if kind == "labels":
        doubted = find_label_issues(
            given["labels"], given["probabilities"], return_indices_ranked_by="self_confidence", n_jobs=1
        )
    elif kind == "pipeline":
        probabilities = pipeline(given["texts"].tolist(), given["labels"])
        doubted = find_label_issues(
            given["labels"], probabilities, return_indices_ranked_by="self_confidence", n_jobs=1
        )
    elif kind == "tags":
        ends = given["ends"]
        starts = [0, *ends[:-1]]
        labels = [given["labels"][a:b].tolist() for a, b in zip(starts, ends, strict=True)]
        probabilities = [given["probabilities"][a:b] for a, b in zip(starts, ends, strict=True)]
        doubted = np.array([starts[row] + word for row, word in find_token_issues(labels, probabilities)])
    else:
        scores = get_label_quality_scores(given["labels"], given["predictions"])
        doubted = np.argsort(scores, kind="stable")[: int(given["n"])]
    seconds = time.process_time() - started
    np.savez(path, doubted=doubted, seconds=seconds, version=cleanlab.__version__)


if __name__ == "__main__":
    main(sys.argv[1])
