"""What the training loop and the exporter ask of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """A module whose inputs and outputs are those of its bundle's signature.

    `encoder`, where a network has it, is a pretrained `transformers` encoder: the loop trains it at a rate of its own,
    and of its vocabulary only the rows that are used.
    """

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...]:
        """Names of the answers, in the order that `forward` gives them."""

    @abstractmethod
    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Answers to a batch; inputs in the order of the signature."""
