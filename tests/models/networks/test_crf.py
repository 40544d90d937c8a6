from itertools import pairwise, product

import numpy as np
import pytest
import torch

from models.chain import bio_transitions
from models.networks.crf import Crf

TAGS = ("O", "B-brand", "I-brand", "B-size", "I-size")


def negative_log_likelihood(logits, scores, target):
    """Of `target` among all sequences, each with the sum of its logits and transitions, by enumeration."""

    def score(path):
        steps = sum(scores[before, after] for before, after in pairwise(path))
        words = sum(logits[word, tag] for word, tag in enumerate(path))
        return words + steps + scores[5, path[0]] + scores[6, path[-1]]

    scored = [score(path) for path in product(range(5), repeat=len(logits))]
    return np.logaddexp.reduce(scored) - score(target)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_that_of_all_sequences_written_out(seed):
    torch.manual_seed(seed)
    crf = Crf(TAGS)
    with torch.no_grad():
        crf.transitions.normal_()
    logits, lengths = torch.randn(3, 4, 5) * 2, torch.tensor([4, 1, 3])
    targets = torch.tensor([[1, 2, 0, 3], [0, 0, 0, 0], [3, 4, 4, 0]])
    scores = crf.transitions.detach().double().numpy() + bio_transitions(TAGS)
    expected = sum(
        negative_log_likelihood(logits[text, :n].double().numpy(), scores, targets[text, :n].tolist())
        for text, n in enumerate(lengths.tolist())
    )
    assert crf.loss(logits, targets, lengths).item() == pytest.approx(expected / 8, rel=1e-5)


def test_far_apart_scores_have_gradients_that_are_numbers():
    crf = Crf(TAGS)
    logits = torch.full((1, 3, 5), -500.0)
    logits[0, :, 0] = 500.0
    logits.requires_grad_()
    crf.loss(logits, torch.tensor([[1, 2, 2]]), torch.tensor([3])).backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(crf.transitions.grad).all()


def test_padding_changes_nothing():
    torch.manual_seed(0)
    crf, logits = Crf(TAGS), torch.randn(1, 2, 5)
    alone = crf.loss(logits, torch.tensor([[0, 3]]), torch.tensor([2]))
    padded = torch.cat([logits, torch.full((1, 3, 5), 9.0)], dim=1)
    assert crf.loss(padded, torch.tensor([[0, 3, 0, 0, 0]]), torch.tensor([2])).item() == pytest.approx(alone.item())
