"""MLServer: models of its own runtime, batched by its adaptive batching; V2 inference protocol over HTTP."""

import json

from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from work import Intent, Ranker


class Understand(MLModel):
    """Texts in a BYTES tensor [N], answers as JSON in one [N, 1]."""

    async def load(self) -> bool:
        """Open the model."""
        self._model = Intent()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a batch."""
        answers = self._model.answer(StringCodec.decode_input(payload.inputs[0]))
        output = StringCodec.encode_output("answers", [json.dumps(one) for one in answers])
        return InferenceResponse(model_name=self.name, outputs=[output])


class Rank(MLModel):
    """A matrix of features [D, F] in, scores [D, 1] out; who asks sorts."""

    async def load(self) -> bool:
        """Open the model."""
        self._model = Ranker()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Score a batch."""
        scores = self._model.scores(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("scores", scores[:, None])])
