"""The noise-predicting network."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from network import SimpleNet, TimeEmbedding, TimeLinear

# The same timestep for a batch of two, in every accepted form.
FORMS_OF_7 = [7, torch.tensor(7), torch.tensor([7]), torch.tensor([[7], [7]]), torch.tensor([7.0, 7.0])]


@pytest.mark.parametrize(("dim", "max_period"), [(6, 10000), (256, 10000), (7, 100)])
def test_timestep_embedding_is_cosines_then_sines(dim, max_period):
    t = torch.tensor([0, 1, 500])
    angles = t.double()[:, None] * float(max_period) ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    expected = torch.cat([angles.cos(), angles.sin(), torch.zeros(3, dim % 2)], 1)
    embedding = TimeEmbedding.timestep_embedding(t, dim, max_period=max_period)
    assert torch.allclose(embedding.double(), expected, atol=1e-4)


def test_embedding_is_an_mlp_of_the_sinusoids_and_takes_every_form_of_t():
    embedding = TimeEmbedding(8)
    assert embedding.mlp[0].in_features == 256
    reference = embedding.mlp(TimeEmbedding.timestep_embedding(torch.tensor([7, 7]), 256))
    for t in FORMS_OF_7:
        assert torch.allclose(embedding(t).expand(2, 8), reference, atol=1e-6)


def test_time_linear_is_affine_in_x_times_a_factor_of_t():
    layer = TimeLinear(3, 5, 1000)
    assert (layer.dim_in, layer.dim_out, layer.num_timesteps) == (3, 5, 1000)
    x, y, t = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 500, 999])
    assert torch.allclose(layer(x, t), layer.time_embedding(t) * layer.fc(x))
    assert torch.allclose(layer(x + y, t) - layer(x, t), layer(y, t) - layer(0 * y, t), atol=1e-5)
    assert not torch.allclose(layer(x, t), layer(x, t.flip(0)))


@pytest.mark.parametrize("dim_hids", [[], [16], (8, 32, 4)])
def test_network_is_time_linear_layers_with_silu_between_them(dim_hids):
    net = SimpleNet(2, 3, dim_hids, 1000)
    layers = [m for m in net.modules() if isinstance(m, TimeLinear)]
    assert [(m.dim_in, m.dim_out) for m in layers] == list(pairwise([2, *dim_hids, 3]))
    x, t = torch.randn(64, 2), torch.randint(0, 1000, (64,))
    expected = x
    for layer in layers[:-1]:
        expected = nn.functional.silu(layer(expected, t))
    assert torch.allclose(net(x, t), layers[-1](expected, t), atol=1e-6)


@pytest.mark.parametrize(("t", "error"), [(-1, IndexError), (1000, IndexError), (2.7, ValueError)])
def test_network_rejects_invalid_timesteps(t, error):
    with pytest.raises(error):
        SimpleNet(2, 2, [16], 1000)(torch.randn(2, 2), torch.tensor([t, t]))


def test_first_layer_bends_twice_as_far_out_as_by_default():
    layer = SimpleNet(2, 2, [5000], 10).layers[0].fc
    assert layer.weight.abs().max().item() == pytest.approx(2 / 2**0.5, rel=1e-2)
    assert layer.bias.abs().max().item() == pytest.approx(4 / 2**0.5, rel=1e-2)
