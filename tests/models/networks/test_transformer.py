import pytest
import torch

from models.networks.transformer import IntentPrior, TransformerNetwork, load_encoder
from tests.tiny_encoder import write_encoder


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def network(directory, n_labels=3, n_tags=5):
    torch.manual_seed(1)
    return TransformerNetwork(load_encoder(directory), n_labels=n_labels, n_tags=n_tags, dropout=0.1).eval()


def test_it_gives_the_answers_it_has_heads_for(directory):
    inputs = (torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.int64))
    shapes = {name: tuple(tensor.shape) for name, tensor in network(directory)(*inputs).items()}
    assert shapes == {"intent_logits": (1, 3), "tag_logits": (1, 3, 5)}
    assert network(directory).output_names == tuple(shapes)
    assert list(network(directory, n_tags=0)(*inputs)) == ["intent_logits"]
    assert list(network(directory, n_labels=0)(*inputs)) == ["tag_logits"]


def test_padding_does_not_change_an_answer(directory):
    alone = network(directory)(torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.int64))
    padded = network(directory)(torch.tensor([[2, 5, 3, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]]))
    torch.testing.assert_close(padded["intent_logits"], alone["intent_logits"])
    torch.testing.assert_close(padded["tag_logits"][:, :3], alone["tag_logits"])


def test_the_intent_head_reads_the_mean_of_the_real_tokens(directory):
    net = network(directory)
    states = torch.arange(2 * 16, dtype=torch.float32).reshape(1, 2, 16)
    answer = net.answer(torch.cat([states, states + 1e3], 1), torch.tensor([[1, 1, 0, 0]]))
    torch.testing.assert_close(answer["intent_logits"], net.intent_head(states.mean(1)))


def test_an_intent_takes_from_the_tags_by_its_chance_but_not_while_training(directory):
    net = network(directory, n_labels=2, n_tags=2)
    with torch.no_grad():
        net.intent_head.weight.zero_()
        net.intent_head.bias.copy_(torch.tensor([3.0, 1.0]).log())
    inputs = (torch.tensor([[2, 5, 3], [2, 4, 3]]), torch.ones(2, 3, dtype=torch.int64))
    plain = net(*inputs)["tag_logits"]
    net.intent_prior = IntentPrior(torch.tensor([[0.0, -4.0], [-2.0, 0.0]]))
    # Chances of 3/4 and 1/4.
    torch.testing.assert_close(net(*inputs)["tag_logits"], plain + torch.tensor([-0.5, -3.0]))
    net.dropout.p = 0.0
    for part in net.encoder.modules():
        part.train(False)
    net.training = True
    torch.testing.assert_close(net(*inputs)["tag_logits"], plain)


def test_the_pooler_that_no_head_reads_is_left_out(directory):
    assert not [name for name, _ in load_encoder(directory).named_parameters() if "pooler" in name]
