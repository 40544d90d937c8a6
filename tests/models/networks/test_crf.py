from itertools import pairwise, product

import numpy as np
import pytest
import torch

from models.chain import TagChain, bio_transitions
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


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_to_another_field_is_least_at_its_own_logits_and_grows_by_the_divergence(temperature):
    torch.manual_seed(0)
    crf = Crf(TAGS).requires_grad_(False)
    crf.transitions.normal_()
    transitions = crf.transitions.double().numpy() / temperature
    scores = transitions + bio_transitions(TAGS)
    mine, theirs = torch.randn(3, 5) * 2, torch.randn(3, 5) * 2
    divergence = 0.0
    for path in product(range(5), repeat=3):
        lost, theirs_lost = (
            negative_log_likelihood(logits.double().numpy() / temperature, scores, path) for logits in (mine, theirs)
        )
        if np.isfinite(lost):
            divergence += np.exp(-theirs_lost) * (lost - theirs_lost)
    chances = torch.from_numpy(
        TagChain(TAGS, transitions).marginals([theirs.double().numpy() / temperature])[0]
    ).float()
    alone = [crf.loss_to(chances[None], one[None], torch.tensor([3]), temperature).item() for one in (mine, theirs)]
    assert alone[0] - alone[1] == pytest.approx(temperature**2 * divergence / 3, rel=1e-4)
    logits = theirs[None].clone().requires_grad_()
    crf.loss_to(chances[None], logits, torch.tensor([3]), temperature).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(1, 3, 5), atol=1e-6, rtol=0)


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
