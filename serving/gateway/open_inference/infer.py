"""One inference, whatever protocol it came by: tensors by name in, tensors by name out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from models.model import Model
from serving.gateway.config import LimitsConfig
from serving.gateway.dataplane import Dataplane
from serving.gateway.flow import Place
from serving.gateway.open_inference import inputs, outputs
from serving.gateway.open_inference.tensors import Tensor
from serving.runtime.protocol import ServedModel


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What was asked of a model, in numpy's arrays.

    outputs: names in the order wanted, None for all. classes: of which of them the best so many classes are wanted
    instead, 0: the tensor itself.
    """

    tensors: Mapping[str, Tensor]
    outputs: Sequence[str] | None = None
    classes: Mapping[str, int] = field(default_factory=dict)


async def infer(
    dataplane: Dataplane,
    served: ServedModel,
    model: Model,
    request: InferRequest,
    limits: LimitsConfig,
    deadline_s: float,
    place: Place,
) -> dict[str, Tensor]:
    """Run a served model through the gateway's batcher, each row queued by itself; place: what was kept for it.

    InputError, TooLargeError, OverloadedError, DeadlineError, UnavailableError.
    """
    specs, series = outputs.chosen(request.outputs, served), dataplane.series(served)
    with series.encode():
        asked = await inputs.read(request.tensors, served, model, limits)
        rows = asked.rows
        if asked.candidates is not None and asked.candidates.ids:
            rows = await dataplane.encode(served, asked.candidates, deadline_s)
    answers = await dataplane.run(served, rows, deadline_s, place)
    with series.decode():
        found = outputs.joined(rows, answers, served, specs, is_list=asked.candidates is not None)
        for name, n in request.classes.items():
            if n:
                found[name] = outputs.classified(name, found[name], n, served)
        return found
