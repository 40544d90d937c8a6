"""What every peer does for an answer: the same files, the same runtime and tokenizer, nothing more than is needed.

Stands alone, as the peers' environments have no rankyard: numpy, onnxruntime and tokenizers. Settings come from the
environment variable PEER, as JSON: intent and ranker (bundles' directories), threads, and what a peer's own file reads.
"""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

SETTINGS = json.loads(os.environ["PEER"])
N_ALTERNATIVES = 3


def session(bundle):
    """Open the variant that the bundle's gateway would serve, on the threads that the settings say."""
    int8, float32 = Path(bundle, "model.int8.onnx"), Path(bundle, "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = SETTINGS["threads"]
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = int8 if int8.exists() else float32
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Intent:
    """Texts to labels, a batch at a time, padded to the longest."""

    def __init__(self):
        bundle = SETTINGS["intent"]
        self._labels = json.loads(Path(bundle, "manifest.json").read_text())["labels"]
        self._tokenizer = Tokenizer.from_file(str(Path(bundle, "tokenizer.json")))
        self._tokenizer.no_padding()
        self._session = session(bundle)

    def answer(self, texts):
        """Give label, confidence and the next labels of every text."""
        encoded = [one.ids for one in self._tokenizer.encode_batch(list(texts))]
        ids = np.zeros((len(encoded), max(map(len, encoded))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for place, tokens in enumerate(encoded):
            ids[place, : len(tokens)] = tokens
            mask[place, : len(tokens)] = 1
        (logits,) = self._session.run(["intent_logits"], {"input_ids": ids, "attention_mask": mask})
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        chances = odds / odds.sum(axis=1, keepdims=True)
        first = np.argsort(-chances, axis=1)[:, : N_ALTERNATIVES + 1]
        return [
            {
                "label": self._labels[row[0]],
                "confidence": float(chances[place, row[0]]),
                "alternatives": [[self._labels[other], float(chances[place, other])] for other in row[1:]],
            }
            for place, row in enumerate(first.tolist())
        ]


class Ranker:
    """Candidates by row, features by name, to an order."""

    def __init__(self):
        bundle = SETTINGS["ranker"]
        self._names = json.loads(Path(bundle, "manifest.json").read_text())["features"]
        self._session = session(bundle)

    def scores(self, matrix):
        """Score a matrix of features in the model's order."""
        return self._session.run(["score"], {"features": np.ascontiguousarray(matrix, dtype=np.float32)})[0]

    def answer(self, candidates):
        """Give ids and scores in falling order."""
        nan = float("nan")
        rows = [
            [nan if (value := one["features"].get(name)) is None else value for name in self._names]
            for one in candidates
        ]
        scores = self.scores(rows)
        return [
            {"id": candidates[place]["id"], "score": float(scores[place])}
            for place in np.argsort(-scores, kind="stable")
        ]
