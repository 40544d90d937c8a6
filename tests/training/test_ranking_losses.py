"""Each loss against its formula, written once more in plain numpy, and against what must hold of it."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from training.ranking_losses import (
    APPROX_TEMPERATURE,
    LOSSES,
    approx_ndcg,
    listnet,
    neural_ndcg,
    pointwise,
    ranking_loss,
    sorting_matrix,
)

LISTS = [
    (np.array([0.3, -1.2, 2.0, 0.4]), np.array([1.0, 0.0, 2.0, 0.0])),
    (np.array([1.5, 1.0]), np.array([0.0, 3.0])),
    (np.array([0.1, 0.2, -0.3, 0.9, 0.5]), np.array([0.0, 1.0, 4.0, 0.0, 2.0])),
]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def np_listnet(s, y):
    return -np.sum(softmax(y) * np.log(softmax(s)))


def np_pointwise(s, y, max_label):
    t, p = y / max_label, 1 / (1 + np.exp(-s))
    return -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p))


def ideal(y):
    return sum((2**label - 1) / math.log2(place + 2) for place, label in enumerate(sorted(y, reverse=True)))


def np_approx_ndcg(s, y):
    dcg = 0.0
    for j in range(len(s)):
        rank = 1 + sum(1 / (1 + math.exp(-(s[i] - s[j]) / APPROX_TEMPERATURE)) for i in range(len(s)) if i != j)
        dcg += (2 ** y[j] - 1) / math.log2(1 + rank)
    return 1 - dcg / ideal(y)


def np_neural_sort(s, tau):
    n = len(s)
    total = np.abs(s[:, None] - s[None, :]).sum(1)
    return np.array([softmax(((n + 1 - 2 * i) * s - total) / tau) for i in range(1, n + 1)])


def np_neural_ndcg(s, y):
    p = np_neural_sort(s, 1.0)
    for _ in range(30):
        p = p / p.sum(0, keepdims=True)
        p = p / p.sum(1, keepdims=True)
    return 1 - np.sum(p @ (2**y - 1) / np.log2(np.arange(2, len(s) + 2))) / ideal(y)


def padded(lists):
    longest = max(len(s) for s, _ in lists)
    scores, labels = (torch.full((len(lists), longest), 9.0) for _ in range(2))  # what stands in padding must not count
    mask = torch.zeros((len(lists), longest), dtype=torch.bool)
    for row, (s, y) in enumerate(lists):
        scores[row, : len(s)], labels[row, : len(y)] = torch.tensor(s), torch.tensor(y)
        mask[row, : len(s)] = True
    return scores, labels, mask


@pytest.mark.parametrize(
    ("loss", "formula"), [(listnet, np_listnet), (approx_ndcg, np_approx_ndcg), (neural_ndcg, np_neural_ndcg)]
)
def test_a_loss_is_its_formula_and_the_mean_over_lists(loss, formula):
    for one in LISTS:
        assert loss(*padded([one])).item() == pytest.approx(formula(*one), abs=1e-5)
    assert loss(*padded(LISTS)).item() == pytest.approx(np.mean([formula(*one) for one in LISTS]), abs=1e-5)


def test_pointwise_is_the_cross_entropy_of_graded_relevance():
    expected = np.mean([np_pointwise(*one, max_label=4.0) for one in LISTS])
    assert pointwise(*padded(LISTS), max_label=4.0).item() == pytest.approx(expected, abs=1e-6)


def test_listnet_is_as_in_the_paper():
    # Two documents, one relevant: -(e log p + log(1 - p)) / (e + 1) at p = 1/2 is log 2.
    assert listnet(*padded([(np.zeros(2), np.array([1.0, 0.0]))])).item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize(("loss", "scale"), [(approx_ndcg, 50), (neural_ndcg, 200)])
def test_of_scores_far_apart_the_smooth_ndcg_is_ndcg(loss, scale):
    for s, y in LISTS:
        right = ndcg_score([2**y - 1], [s])
        assert 1 - loss(*padded([(s * scale, y)])).item() == pytest.approx(right, abs=1e-3)


def test_the_relaxed_sorting_matrix_becomes_the_permutation():
    scores = torch.tensor([[0.1, 3.0, 1.0]])
    matrix = sorting_matrix(scores, torch.ones_like(scores, dtype=torch.bool), 1e-3)[0]
    np.testing.assert_allclose(matrix, [[0, 1, 0], [0, 0, 1], [1, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_following_the_gradient_puts_a_list_in_order(name):
    s = torch.zeros(4, requires_grad=True)
    loss = ranking_loss([np.array([0, 3, 1, 0], np.float32)], {name: 1.0})
    with torch.no_grad():
        s += torch.tensor([0.02, 0.0, 0.01, 0.03])
    optimizer = torch.optim.Adam([s], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss({"score": s}, np.array([0])).backward()
        optimizer.step()
    assert s.argsort(descending=True)[:2].tolist() == [1, 2]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_lists_without_a_relevant_document_give_finite_gradients(name):
    s = torch.zeros(5, requires_grad=True)
    loss = ranking_loss([np.zeros(3, np.float32), np.array([0, 1], np.float32)], {name: 1.0})
    loss({"score": s}, np.array([0, 1])).backward()
    assert torch.isfinite(s.grad).all()


def test_scores_end_to_end_and_padded_ones_are_the_same_lists():
    labels = [y.astype(np.float32) for _, y in LISTS]
    loss = ranking_loss(labels, {"listnet": 1.0, "pointwise": 0.5})
    chosen = np.array([2, 0])
    flat = torch.tensor(np.concatenate([LISTS[i][0] for i in chosen]), dtype=torch.float32)
    scores, _, _ = padded([LISTS[i] for i in chosen])
    expected = np.mean([np_listnet(*LISTS[i]) + 0.5 * np_pointwise(*LISTS[i], max_label=4.0) for i in chosen])
    assert loss({"score": flat}, chosen).item() == pytest.approx(expected, abs=1e-5)
    assert loss({"score": scores}, chosen).item() == pytest.approx(expected, abs=1e-5)
