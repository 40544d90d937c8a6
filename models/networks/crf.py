"""Transitions between the tags of neighbouring words, learned with the network and decoded by `models.chain`.

Shapes: B texts, W words, K tags; transitions [K + 2, K] as in `models.chain`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.chain import bio_transitions

_LEAST = 1e-30


class Crf(nn.Module):
    """A linear-chain conditional random field over BIO tags: sequences that BIO forbids have no probability."""

    def __init__(self, tags: Sequence[str]) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(len(tags) + 2, len(tags)))
        self.bio: Tensor
        self.register_buffer("bio", torch.from_numpy(bio_transitions(tags)).float(), persistent=False)

    def loss(self, logits_BWK: Tensor, targets_BW: Tensor, lengths_B: Tensor) -> Tensor:
        """Negative log-likelihood of the target tags, mean over words: a scalar.

        Text b has `lengths_B[b]` words, at least one; what lies beyond is padding.
        """
        n_tags = logits_BWK.shape[2]
        scores = self.transitions + self.bio
        step_KK, begin_K, end_K = scores[:n_tags], scores[n_tags], scores[n_tags + 1]
        is_word_BW = torch.arange(targets_BW.shape[1]) < lengths_B[:, None]
        emissions_BW = logits_BWK.gather(2, targets_BW[:, :, None])[:, :, 0]
        steps_BV = step_KK[targets_BW[:, :-1], targets_BW[:, 1:]]
        last_B = targets_BW.gather(1, (lengths_B - 1)[:, None])[:, 0]
        gold_B = (
            emissions_BW.where(is_word_BW, 0.0).sum(1)
            + steps_BV.where(is_word_BW[:, 1:], 0.0).sum(1)
            + begin_K[targets_BW[:, 0]]
            + end_K[last_B]
        )
        return (_log_z(logits_BWK, scores, lengths_B) - gold_B).sum() / lengths_B.sum()

    def loss_to(self, chances_BWK: Tensor, logits_BWK: Tensor, lengths_B: Tensor, temperature: float) -> Tensor:
        """T^2 x the cross-entropy to another field over the same transitions, mean over words: a scalar.

        Of whole sequences, both fields' scores divided by T, and less what does not depend on the logits: its gradient
        by them is T x the difference of the two fields' marginals. chances_BWK: the other's marginals at T, 0 beyond a
        text's words; several others' means will do. Texts have at least a word each.
        """
        scores = self.transitions / temperature + self.bio
        expected_B = (logits_BWK * chances_BWK).sum((1, 2)) / temperature
        log_z_B = _log_z(logits_BWK / temperature, scores, lengths_B)
        return temperature**2 * (log_z_B - expected_B).sum() / lengths_B.sum()


def _log_z(logits_BWK: Tensor, scores: Tensor, lengths_B: Tensor) -> Tensor:
    """Logarithm [B] of the sum over all sequences, by the forward recursion (Lafferty et al. 2001).

    A step of it is a product of odds: of K x K matrices, not of B x K x K tensors.
    """
    n_tags = logits_BWK.shape[2]
    step_KK, begin_K, end_K = scores[:n_tags], scores[n_tags], scores[n_tags + 1]
    odds_KK = step_KK.exp()
    reached_BK = begin_K + logits_BWK[:, 0]
    for word in range(1, logits_BWK.shape[1]):
        highest_B1 = reached_BK.max(dim=1, keepdim=True).values
        odds_BK = (reached_BK - highest_B1).exp() @ odds_KK
        # A tag that nothing leads to has odds of 0; the floor keeps its logarithm's gradient a number.
        next_BK = odds_BK.clamp(min=_LEAST).log() + highest_B1 + logits_BWK[:, word]
        reached_BK = torch.where((word < lengths_B)[:, None], next_BK, reached_BK)
    return torch.logsumexp(reached_BK + end_K, dim=1)
