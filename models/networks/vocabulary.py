"""An embedding of which only the rows that the training texts use are trained.

Shapes: V tokens of the vocabulary, U of them used, H hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class UsedRows(nn.Module):
    """Stands for `embedding` while it holds the used rows [U, H] as its parameter; `restored` gives it back.

    A pretrained vocabulary is most of a small encoder (MiniLM-L6: 11.7 of 22.7 million weights) and a training set uses
    a few thousandth of it, yet gradients, AdamW's moments and checkpoints are as large as the parameter. The other rows
    would get no gradient; here they get no weight decay either and keep their pretrained values.
    A token outside `used_U` is an IndexError.
    """

    def __init__(self, embedding: nn.Embedding, used_U: Tensor) -> None:
        super().__init__()
        n_used = len(used_U)
        place_V = torch.full((embedding.num_embeddings,), n_used, dtype=torch.int64)
        place_V[used_U] = torch.arange(n_used)
        self.place: Tensor
        self.register_buffer("place", place_V, persistent=False)
        self.weight = nn.Parameter(embedding.weight.detach()[used_U].clone())
        # In tuples, the whole embedding is no submodule: its weights are neither trained nor saved.
        self._whole = (embedding,)
        self._used = (used_U,)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed tokens [B, T] as [B, T, H]."""
        return functional.embedding(self.place[input_ids], self.weight)

    @torch.no_grad()
    def restored(self) -> nn.Embedding:
        """Give the whole embedding with the trained rows in their places."""
        embedding = self._whole[0]
        embedding.weight[self._used[0]] = self.weight
        return embedding
