import pytest
import torch
from torch import nn

from models.networks.vocabulary import UsedRows


@pytest.fixture
def embedding():
    torch.manual_seed(0)
    return nn.Embedding(7, 3)


def test_used_tokens_are_embedded_as_before(embedding):
    ids = torch.tensor([[5, 0], [2, 5]])
    assert torch.equal(UsedRows(embedding, torch.tensor([0, 2, 5]))(ids), embedding(ids))


def test_training_changes_only_the_rows_that_are_used(embedding):
    before = embedding.weight.detach().clone()
    rows = UsedRows(embedding, torch.tensor([0, 2, 5]))
    with torch.no_grad():
        rows.weight += 1
    after = rows.restored().weight
    assert torch.equal(after[[0, 2, 5]], before[[0, 2, 5]] + 1)
    assert torch.equal(after[[1, 3, 4, 6]], before[[1, 3, 4, 6]])


def test_only_the_used_rows_are_parameters_and_state(embedding):
    rows = UsedRows(embedding, torch.tensor([0, 2, 5]))
    assert [parameter.shape for parameter in rows.parameters()] == [(3, 3)]
    assert list(rows.state_dict()) == ["weight"]


def test_a_token_that_was_not_announced_is_an_error(embedding):
    with pytest.raises(IndexError):
        UsedRows(embedding, torch.tensor([0, 2]))(torch.tensor([[1]]))
