"""A pretrained encoder that names a text's intent, and says how far the text is from the classes it was trained on.

Shapes: B texts, T tokens, H hidden units, C intent labels, I labels other than `oos`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.networks.transformer import TransformerNetwork
from models.scope import DISTANCE_OUTPUT


class IntentNetwork(TransformerNetwork):
    """Encoder, mean of the real tokens' states, then a linear head, or a cosine head where `cosine_scale` is given.

    A cosine head's logits are scale x the cosine of the text's vector and the class's (Gidaris and Komodakis 2018,
    section 3.2). Vectors of a pretrained sentence encoder are compared by their cosine, so that such a head can start
    from class means.
    """

    def __init__(
        self, encoder: PreTrainedModel, *, n_labels: int, dropout: float, cosine_scale: float | None = None
    ) -> None:
        super().__init__(encoder, n_labels=n_labels, n_tags=0, dropout=dropout)
        self.cosine_scale = cosine_scale
        self.class_means: nn.Parameter | None = None

    @property
    def output_names(self) -> tuple[str, ...]:
        """`intent_logits`, and `class_distance` once there are class means."""
        return ("intent_logits",) if self.class_means is None else ("intent_logits", DISTANCE_OUTPUT)

    def start_from(self, means_CH: Tensor, *, gives_several: bool = False) -> None:
        """Let a cosine head begin with these vectors of the classes.

        gives_several: each label is weighed against 0, not against the others; it begins to apply at a cosine of 0.5.
        """
        head, scale = self._head(), self.cosine_scale or 0.0
        with torch.no_grad():
            head.weight.copy_(means_CH)
            head.bias.fill_(-scale / 2 if gives_several else 0.0)
        head.bias.requires_grad_(gives_several)

    def measure_from(self, means_IH: Tensor) -> None:
        """Answer `class_distance` too: from these mean vectors, each of length 1."""
        self.class_means = nn.Parameter(means_IH, requires_grad=False)

    def answer(self, states_BTH: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """`intent_logits` [B, C], and `class_distance` [B] as `models.scope` defines it."""
        mask_BT1 = attention_mask.unsqueeze(-1).to(states_BTH.dtype)
        mean_BH = (states_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)
        head, read_BH = self._head(), self.dropout(mean_BH)
        if self.cosine_scale is None:
            outputs = {"intent_logits": head(read_BH)}
        else:
            outputs = {"intent_logits": self.cosine_scale * (_unit(read_BH) @ _unit(head.weight).T) + head.bias}
        if self.class_means is not None:
            outputs[DISTANCE_OUTPUT] = 1 - (_unit(mean_BH) @ self.class_means.T).amax(1)
        return outputs

    def _head(self) -> nn.Linear:
        if self.intent_head is None:
            raise AssertionError("an intent network has an intent head")
        return self.intent_head


def _unit(vectors: Tensor) -> Tensor:
    # Written out: ONNX Runtime's shape inference stumbles over the export of `normalize`, and prints so.
    return vectors / vectors.square().sum(-1, keepdim=True).sqrt()
