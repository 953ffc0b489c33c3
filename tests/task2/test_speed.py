"""Optimisations of speed and memory change the last digits only."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import speed
from conftest import SMALL_UNET, small_model, weights_after
from module import AttnBlock
from network import UNet
from oracles import max_difference

CPU = torch.device("cpu")
TWO_LEVELS = {"ch_mult": [1, 2], "attn": [1]}


def loss_and_gradient(model):
    model.network.zero_grad()
    torch.manual_seed(1)
    np.random.seed(1)
    loss = model.get_loss(torch.rand(8, 3, 8, 8) * 2 - 1)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.network.parameters()])


# Precision and memory format


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_and_the_prediction_is_float32(precision):
    model = small_model(**TWO_LEVELS)
    loss, gradient = loss_and_gradient(model)
    model.precision = precision
    loss_16, gradient_16 = loss_and_gradient(model)
    assert loss_16 != loss and loss_16 == pytest.approx(loss, rel=5e-3)
    assert torch.cosine_similarity(gradient, gradient_16, dim=0) > 0.999
    assert model.predict(torch.randn(1, 3, 8, 8), torch.tensor([3])).dtype == torch.float32


@pytest.mark.parametrize(("avx512", "amx"), [(True, False), (False, True), (False, False)])
def test_auto_is_bf16_on_cpus_with_units_for_it(monkeypatch, avx512, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert speed.select_precision("auto", CPU) == ("bf16" if avx512 or amx else "fp32")
    assert speed.select_precision("fp16", CPU) == "fp16"


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")])
def test_auto_is_the_precision_that_is_fast_on_this_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", {torch.device("cuda:1"): capability}.get)
    assert speed.select_precision("auto", torch.device("cuda:1")) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("device", ["cpu", "meta"])  # meta stands in for a GPU
def test_channels_last_but_not_for_half_precision_on_a_cpu(new_trainer, device, precision):
    with torch.device(device):
        network = speed.place_network(UNet(**SMALL_UNET), torch.device(device), precision)
    is_channels_last = network.head.weight.is_contiguous(memory_format=torch.channels_last)
    assert is_channels_last is (device == "meta" or precision == "fp32")
    trainer = new_trainer("--precision", precision)
    assert trainer.model.precision == trainer.ema.precision == precision


def test_fp16_scales_losses_so_that_no_gradient_vanishes_and_skips_steps_that_overflow(new_trainer):
    trainer = new_trainer("--precision", "fp16")
    images, labels = torch.rand(8, 3, 8, 8) * 2 - 1, torch.ones(8, dtype=torch.long)
    trainer.train_step(images, labels)
    before, scale = trainer.weights[0].detach().clone(), trainer.scaler.get_scale()
    assert scale > 1000
    trainer.scaler.update(new_scale=2.0**40)
    trainer.train_step(images, labels)
    assert torch.equal(trainer.weights[0], before) and trainer.scaler.get_scale() == 2.0**39
    trainer.scaler.update(new_scale=scale)
    trainer.train_step(images, labels)
    assert not torch.equal(trainer.weights[0], before)


def test_fp16_is_resumed_bit_for_bit(new_trainer):
    """Also its scale, which doubles here every second step."""
    whole, resumed = new_trainer("--precision", "fp16"), new_trainer("--precision", "fp16")
    for trainer in (whole, resumed):
        trainer.scaler.set_growth_interval(2)
    weights_after(whole, steps=1)
    whole.save()
    resumed.load()
    assert torch.equal(*(weights_after(trainer, seed=5)[0] for trainer in (whole, resumed)))
    assert whole.scaler.state_dict() == resumed.scaler.state_dict() and whole.scaler.get_scale() > 2**16


# Kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attention_uses_a_kernel_that_stores_no_matrix_of_weights(memory_format, dtype):
    block = AttnBlock(32).to(dtype=dtype, memory_format=memory_format)
    x = torch.randn(2, 32, 8, 8, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error where it cannot be used
        block(x).sum().backward()
    assert x.grad.isfinite().all()


def test_no_gradient_waits_for_the_device(new_trainer):
    """Which reading a number from it, such as the loss, would do."""
    trainer, images, labels = new_trainer(), torch.rand(8, 3, 8, 8), torch.ones(8, dtype=torch.long)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.compute_gradient(images, labels)
    called = {event.key for event in profile.key_averages()}
    assert "aten::convolution" in called and "aten::_local_scalar_dense" not in called


# Memory


def test_recomputed_activations_give_the_same_gradient_bit_for_bit(new_trainer):
    """Also with dropout, which must be drawn the same a second time."""
    model = small_model(**TWO_LEVELS, dropout=0.3)
    loss, gradient = loss_and_gradient(model)
    model.network.activation_checkpointing = True
    calls = []
    for block in model.network.downblocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    loss_again, gradient_again = loss_and_gradient(model)
    assert loss_again == loss and torch.equal(gradient, gradient_again)
    assert len(calls) > len(model.network.downblocks)
    for flags in (["--activation_checkpointing"], []):
        assert new_trainer(*flags).network.activation_checkpointing is bool(flags)


def test_a_batch_in_parts_is_the_same_batch(new_trainer):
    whole, losses = weights_after(new_trainer("--learning_rate", 1e-3))
    trainer, sizes = new_trainer("--learning_rate", 1e-3, "--accumulate", 4), []
    trainer.network.head.register_forward_hook(lambda layer, inputs, _: sizes.append(len(inputs[0])))
    parts, losses_of_parts = weights_after(trainer)
    assert sizes == [2] * 16
    assert losses_of_parts == pytest.approx(losses, rel=1e-5)
    assert max_difference(whole, parts) < 1e-5
