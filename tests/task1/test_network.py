from itertools import pairwise

import pytest
import torch
from torch import nn

from network import SimpleNet, TimeEmbedding, TimeLinear


def test_embedding_starts_from_sinusoids_of_t():
    embedding = TimeEmbedding(8, frequency_embedding_size=6)
    embedding.mlp = nn.Identity()
    t = torch.tensor([0, 1, 500])
    angles = t.double()[:, None] * torch.tensor([1.0, 1e4 ** (-1 / 3), 1e4 ** (-2 / 3)], dtype=torch.float64)
    expected = torch.cat([angles.cos(), angles.sin()], 1)
    assert torch.allclose(embedding(t).double(), expected, atol=1e-4)


def test_embedding_takes_every_form_of_t():
    embedding = TimeEmbedding(8)
    reference = embedding(torch.tensor([7, 7]))
    assert reference.shape == (2, 8)
    for t in (torch.tensor([[7], [7]]), torch.tensor([7.0, 7.0]), torch.tensor([7, 7], dtype=torch.int32)):
        assert torch.equal(embedding(t), reference)
    for t in (7, torch.tensor(7), torch.tensor([7])):
        assert embedding(t).shape == (1, 8)
        assert torch.allclose(embedding(t), reference[:1], atol=1e-6)


def test_time_linear_is_affine_in_x_times_a_factor_of_t():
    layer = TimeLinear(3, 5, 1000)
    x, y, t = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 500, 999])
    assert torch.allclose(layer(x, t), layer.time_embedding(t) * layer.fc(x))
    # Affine: the increment does not depend on where it starts.
    assert torch.allclose(layer(x + y, t) - layer(x, t), layer(y, t) - layer(0 * y, t), atol=1e-5)
    assert not torch.allclose(layer(x, t), layer(x, t.flip(0)))


@pytest.mark.parametrize("dim_hids", [[], [16], [128, 128, 128], [8, 32, 4]])
def test_every_layer_is_time_linear_and_the_last_is_not_activated(dim_hids):
    net = SimpleNet(2, 3, dim_hids, 1000)
    layers = [m for m in net.modules() if isinstance(m, TimeLinear)]
    widths = [2, *dim_hids, 3]
    assert [(m.fc.in_features, m.fc.out_features) for m in layers] == list(pairwise(widths))

    x, t = torch.randn(64, 2), torch.randint(0, 1000, (64,))
    expected = x
    for layer in layers[:-1]:
        expected = nn.functional.silu(layer(expected, t))
    assert torch.allclose(net(x, t), layers[-1](expected, t), atol=1e-6)


def test_every_parameter_gets_a_finite_gradient():
    net = SimpleNet(2, 2, [128, 128, 128], 1000)
    net(torch.randn(32, 2), torch.randint(0, 1000, (32,))).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_one_t_serves_the_whole_batch():
    net = SimpleNet(2, 2, [16], 1000)
    x = torch.randn(5, 2)
    assert torch.allclose(net(x, torch.tensor([3])), net(x, torch.full((5,), 3)), atol=1e-6)


def test_network_takes_every_form_of_t():
    net = SimpleNet(2, 2, [16], 1000)
    x = torch.randn(2, 2)
    reference = net(x, torch.tensor([7, 7]))
    for t in (torch.tensor([[7], [7]]), torch.tensor([7.0, 7.0]), torch.tensor([[7.0], [7.0]]), 7, torch.tensor(7)):
        assert torch.allclose(net(x, t), reference, atol=1e-6)


@pytest.mark.parametrize(("t", "error"), [(-1, IndexError), (1000, IndexError), (2.7, ValueError)])
def test_network_refuses_timesteps_that_are_none(t, error):
    with pytest.raises(error):
        SimpleNet(2, 2, [16], 1000)(torch.randn(2, 2), torch.tensor([t, t]))


def test_defaults_of_the_contract():
    assert TimeEmbedding(8).mlp[0].in_features == 256


def test_first_layer_bends_twice_as_far_out_as_by_default():
    layer = SimpleNet(2, 2, [5000], 10).layers[0].fc
    assert layer.weight.abs().max().item() == pytest.approx(2 / 2**0.5, rel=1e-2)
    assert layer.bias.abs().max().item() == pytest.approx(4 / 2**0.5, rel=1e-2)


def test_config_builds_the_same_network():
    net = SimpleNet(2, 2, (16, 8), 50)
    twin = SimpleNet(**net.config)
    twin.load_state_dict(net.state_dict())
    x, t = torch.randn(5, 2), torch.arange(5)
    assert torch.equal(twin(x, t), net(x, t))
