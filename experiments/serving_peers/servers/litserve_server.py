"""LitServe: python litserve_server.py PORT. Batches by size and timeout, workers of their own process."""

import sys

import litserve
from work import SETTINGS, Intent, Ranker


class Understand(litserve.LitAPI):
    """POST /predict {"query": text}."""

    def setup(self, device):  # noqa: ARG002 - LitServe calls it so
        """Open the model in a worker."""
        self._model = Intent()

    def decode_request(self, request):
        """Give the text."""
        return request["query"]

    def batch(self, inputs):
        """Keep texts as they are: they are tokenized together."""
        return inputs

    def predict(self, texts):
        """Answer a batch, or one text where batches are off."""
        return self._model.answer(texts) if isinstance(texts, list) else self._model.answer([texts])[0]

    def unbatch(self, output):
        """Give each its own."""
        return output

    def encode_response(self, output):
        """Give JSON."""
        return output


class Rank(litserve.LitAPI):
    """POST /predict {"candidates": [{"id", "features"}]}."""

    def setup(self, device):  # noqa: ARG002 - LitServe calls it so
        """Open the model in a worker."""
        self._model = Ranker()

    def decode_request(self, request):
        """Give the candidates."""
        return request["candidates"]

    def predict(self, candidates):
        """Order one list."""
        return {"ranking": self._model.answer(candidates)}

    def encode_response(self, output):
        """Give JSON."""
        return output


if __name__ == "__main__":
    if SETTINGS["scenario"] == "rank":
        api = Rank(max_batch_size=1)
    else:
        api = Understand(max_batch_size=SETTINGS["batch"], batch_timeout=SETTINGS["wait_ms"] / 1e3)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=SETTINGS["workers"], fast_queue=SETTINGS["fast_queue"]
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False)
