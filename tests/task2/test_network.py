"""The U-Net and its blocks: sizes, gradients, attention, class labels and patches."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cli import UserError
from module import AttnBlock, DownSample, ResBlock, TimeEmbedding, UpSample
from network import UNet
from oracles import awake, max_difference

SMALL = {"image_resolution": 16, "ch": 32, "ch_mult": [1, 2], "attn": [1], "num_res_blocks": 1}


def test_default_network_is_that_of_the_lab():
    """Size, groups, and attention at level 1 and in the middle."""
    net = UNet()
    # The counter has no formula for the fused attention of CPUs.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 64, 64), torch.zeros(1))
    assert sum(p.numel() for p in net.parameters()) == 58_753_283
    assert counter.get_total_flops() / 1e9 == pytest.approx(89.4, abs=0.05)
    assert {m.num_groups for m in net.modules() if isinstance(m, torch.nn.GroupNorm)} == {32}
    with_attention = [
        (name.split(".")[0], block.block1[2].out_channels)
        for name, block in net.named_modules()
        if isinstance(block, ResBlock) and isinstance(block.attn, AttnBlock)
    ]
    assert with_attention == [("downblocks", 256)] * 4 + [("middleblocks", 256)] + [("upblocks", 256)] * 5


SIZES = {"ch_mult": [1], "attn": [0]}, {"ch_mult": [1, 1, 2]}, {"attn": []}, {"attn": [0, 1]}, {"ch": 64}


@pytest.mark.parametrize("changes", SIZES, ids=str)
def test_output_has_the_shape_of_the_input(changes):
    net = UNet(**SMALL | changes)
    assert net(torch.randn(2, 3, 16, 16), torch.tensor([0, 999])).shape == (2, 3, 16, 16)
    assert net.image_resolution == 16


def test_every_parameter_gets_a_finite_gradient():
    net = UNet(**SMALL, dropout=0.0, use_cfg=True, num_classes=2, cfg_dropout=0.0)
    x, t, label = torch.randn(4, 3, 16, 16), torch.tensor([0, 10, 500, 999]), torch.tensor([1, 2, 1, 0])
    (net(x, t, label) - torch.randn_like(x)).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A bias before softmax over keys shifts all scores alike, and so has no effect.
        if not name.endswith("proj_k.bias"):
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("channels", [32, 64, 96, 128, 384])
def test_blocks_depend_on_t_at_every_width(channels):
    """With one channel per group, normalisation would remove the shift by the time embedding."""
    block = awake(ResBlock(channels, channels, 16, dropout=0.0))
    x = torch.randn(1, channels, 4, 4)
    early, late = block(x, torch.randn(1, 16)), block(x, torch.randn(1, 16))
    assert (early - late).abs().mean() > 1e-2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_resolution": 17}, "image_resolution 17.*multiple of 2"),
        ({"image_resolution": 20, "ch_mult": [1, 1, 1, 1]}, "image_resolution 20.*multiple of 8"),
        ({"image_resolution": 20, "patch_size": 4}, "image_resolution 20.*multiple of 8"),
        ({"patch_size": 3}, "patch_size.*got 3"),
        ({"ch": 48}, "ch .*multiple of 32.*got 48"),
        ({"attn": [2]}, r"attn .*0 to 1, got \[2\]"),
        ({"use_cfg": True}, "use_cfg needs num_classes"),
    ],
)
def test_sizes_that_do_not_fit_are_user_errors(changes, words):
    with pytest.raises(UserError, match=words):
        UNet(**SMALL | changes)


@pytest.mark.parametrize("patch_size", [2, 4])
def test_a_patch_is_seen_and_predicted_whole(patch_size):
    """Through convolutions that pass their centre on, each pixel returns to its place."""
    net = UNet(**SMALL | {"patch_size": patch_size})
    net.head, net.tail = torch.nn.Identity(), torch.nn.Identity()
    net.downblocks, net.middleblocks, net.upblocks = (torch.nn.ModuleList() for _ in range(3))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(net(x, 1), x)


def test_prediction_depends_on_t_and_every_form_of_t_is_accepted():
    net = awake(UNet(**SMALL)).eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        reference = net(x, torch.tensor([7, 7]))
        assert not torch.allclose(net(x, torch.tensor([70, 70])), reference, atol=1e-3)
        for t in (7, torch.tensor(7), torch.tensor([7]), torch.tensor([[7], [7]]), torch.tensor([7.0, 7.0])):
            assert torch.allclose(net(x, t), reference, atol=1e-4)


def test_labels_are_dropped_at_random_in_training_only():
    net = UNet(**SMALL, use_cfg=True, num_classes=2, cfg_dropout=0.3)
    seen = []
    net.class_embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x, label = torch.zeros(1000, 3, 2, 2), torch.full((1000,), 2)
    net(x, 1, label)
    assert (seen[-1] == 0).float().mean().item() == pytest.approx(0.3, abs=5 * (0.21 / 1000) ** 0.5)
    net.eval()
    net(x, 1, label)
    assert torch.equal(seen[-1], label)
    net(x, 1)
    assert torch.equal(seen[-1], 0 * label)
    with pytest.raises(ValueError, match="use_cfg"):
        UNet(**SMALL)(x, 1, label)


def test_every_block_has_the_given_dropout():
    net = UNet(**SMALL, dropout=0.4)
    blocks = [module for module in net.modules() if isinstance(module, ResBlock)]
    assert [m.p for block in blocks for m in block.modules() if isinstance(m, torch.nn.Dropout)] == [0.4] * len(blocks)


def test_attention_is_softmax_attention():
    block = AttnBlock(32)
    torch.nn.init.normal_(block.proj.weight, std=0.2)
    x = torch.randn(2, 32, 4, 5)
    h = block.group_norm(x)
    q, k, v = (p(h).flatten(2) for p in (block.proj_q, block.proj_k, block.proj_v))  # [B, C, HW]
    weights = torch.softmax(q.transpose(1, 2) @ k / 32**0.5, dim=-1)  # [B, HW, HW]
    expected = x + block.proj((v @ weights.transpose(1, 2)).reshape(x.shape))
    assert torch.allclose(block(x), expected, atol=1e-5)


def test_time_embedding_is_cosines_then_sines_of_frequencies_from_1_to_1_by_10000():
    embedding = TimeEmbedding(32, 64)
    seen = []
    embedding.mlp.register_forward_pre_hook(lambda mlp, inputs: seen.append(inputs[0]))
    t = torch.tensor([0, 1, 10, 999])
    embedding(t)
    angles = t.double()[:, None] * 10_000 ** (-torch.arange(32, dtype=torch.float64) / 32)
    assert max_difference(seen[0], torch.cat([angles.cos(), angles.sin()], dim=1)) < 2e-4


def test_with_identity_convolutions_blocks_select_or_repeat_pixels():
    down, up = DownSample(32), UpSample(32)
    for block in (down, up):
        torch.nn.init.dirac_(block.main.weight)
    x = torch.randn(2, 32, 4, 6)
    assert torch.equal(down(x), x[..., ::2, ::2])
    assert torch.equal(up(x), x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def test_only_last_layers_of_branches_start_near_0():
    """So that blocks start as identities, and the first prediction is 0."""
    net = UNet(**SMALL)
    layers = {name: m for name, m in net.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
    near_0 = {name for name, layer in layers.items() if layer.weight.abs().max() < 1e-4}
    blocks = {name: block for name, block in net.named_modules() if isinstance(block, ResBlock)}
    ends = {f"{name}.block2.3" for name in blocks} | {"tail.2"}
    assert near_0 == ends | {f"{name}.attn.proj" for name, block in blocks.items() if isinstance(block.attn, AttnBlock)}
    assert net.eval()(torch.randn(2, 3, 16, 16), torch.tensor([3, 4])).abs().max() < 1e-2
