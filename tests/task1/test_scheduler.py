"""The schedule against its definition in float64, and against another library."""

import diffusers
import numpy as np
import pytest
import torch

from ddpm import MODES, BaseScheduler, as_timesteps, extract
from oracles import betas_by_definition


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("T", [1, 2, 10, 1000])
def test_buffers_agree_with_their_definitions_in_float64(mode, T):
    scheduler = BaseScheduler(T, mode=mode)
    betas = betas_by_definition(mode, T)
    alphas_cumprod = np.array([np.prod(1 - betas[: t + 1]) for t in range(T)])
    prev = np.concatenate([[1.0], alphas_cumprod[:-1]])
    expected = {
        "betas": betas,
        "alphas": 1 - betas,
        "alphas_cumprod": alphas_cumprod,
        "one_minus_alphas_cumprod": 1 - alphas_cumprod,
        "alphas_cumprod_prev": prev,
        "one_minus_alphas_cumprod_prev": 1 - prev,
        "posterior_variance": betas * (1 - prev) / (1 - alphas_cumprod),
    }
    buffers = dict(scheduler.named_buffers())
    assert set(buffers) == set(expected)
    for name, values in expected.items():
        assert buffers[name].dtype == torch.float32
        np.testing.assert_allclose(buffers[name].numpy(), values, rtol=2e-7, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("mode", MODES)
def test_schedule_destroys_the_data_monotonically(mode):
    scheduler = BaseScheduler(1000, mode=mode)
    assert ((scheduler.betas > 0) & (scheduler.betas <= 0.999)).all()
    assert (scheduler.betas.diff() >= 0).all()
    assert (scheduler.alphas_cumprod.diff() < 0).all()
    assert scheduler.alphas_cumprod[-1] < 5e-3
    assert scheduler.alphas_cumprod_prev[0] == 1
    assert scheduler.posterior_variance[0] == 0
    assert (scheduler.posterior_variance <= scheduler.betas).all()


@pytest.mark.parametrize(
    ("mode", "theirs"), [("linear", "linear"), ("quad", "scaled_linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_agrees_with_diffusers(mode, theirs):
    ours = BaseScheduler(1000, mode=mode)
    other = diffusers.DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule=theirs)
    torch.testing.assert_close(ours.betas, other.betas, rtol=2e-4, atol=1e-7)
    torch.testing.assert_close(ours.alphas_cumprod, other.alphas_cumprod, rtol=2e-4, atol=1e-7)


def test_order_of_sampling():
    assert BaseScheduler(5).timesteps.tolist() == [4, 3, 2, 1, 0]
    assert BaseScheduler(5).num_train_timesteps == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_train_timesteps": 10, "mode": "sigmoid"}, "'sigmoid': choose one of linear, quad, cosine"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be at least 1, got 0"),
        ({"num_train_timesteps": 10, "beta_1": 0.0}, "0 < beta_1 <= beta_T < 1"),
        ({"num_train_timesteps": 10, "beta_T": 1.0}, "0 < beta_1 <= beta_T < 1"),
        ({"num_train_timesteps": 10, "beta_1": 0.3, "beta_T": 0.2}, "got 0.3 and 0.2"),
    ],
)
def test_bad_settings_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        BaseScheduler(**arguments)


def test_extract_takes_every_form_of_t():
    table, x = torch.arange(10.0) ** 2, torch.zeros(3, 2, 4)
    many = torch.tensor([9.0, 0.0, 16.0]).reshape(3, 1, 1)
    for t in ([3, 0, 4], [[3], [0], [4]]):
        for dtype in (torch.int64, torch.int32, torch.uint8, torch.float32, torch.float64):
            assert torch.equal(extract(table, torch.tensor(t, dtype=dtype), x), many)
    for t in (4, torch.tensor(4), torch.tensor([4]), torch.tensor(4.0), torch.tensor([[4]])):
        out = extract(table, t, x)
        assert out.shape == (1, 1, 1) and out.item() == 16


@pytest.mark.parametrize("t", [10, -1, torch.tensor([0, 10]), torch.tensor([-1, 3])])
def test_extract_refuses_timesteps_outside_the_schedule(t):
    with pytest.raises(RuntimeError, match="out of bounds"):
        extract(torch.arange(10.0), t, torch.zeros(2, 2))


@pytest.mark.parametrize("t", [0.5, torch.tensor([1.0, 2.5]), torch.tensor(float("nan"))])
def test_fractional_timesteps_are_refused(t):
    with pytest.raises(ValueError, match="whole numbers"):
        as_timesteps(t, torch.device("cpu"))
