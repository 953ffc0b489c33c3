"""The noise schedule against its definition in float64."""

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
        "alphas_cumprod_prev": prev,
        "sqrt_alphas_cumprod": alphas_cumprod**0.5,
        "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod) ** 0.5,
        "posterior_variance": betas * (1 - prev) / (1 - alphas_cumprod),
    }
    buffers = dict(scheduler.named_buffers())
    assert set(buffers) == set(expected)
    for name, values in expected.items():
        assert buffers[name].dtype == torch.float32
        np.testing.assert_allclose(buffers[name].numpy(), values, rtol=2e-7, atol=1e-12, err_msg=name)
    assert scheduler.timesteps.tolist() == list(reversed(range(T))) and scheduler.num_train_timesteps == T


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"mode": "sigmoid"}, "sigmoid.*linear.*quad.*cosine"),
        ({"num_train_timesteps": 0}, "num_train_timesteps.*0"),
        ({"beta_1": 0.0}, "beta_1.*0.0"),
        ({"beta_T": 1.0}, "beta_T.*1.0"),
        ({"beta_1": 0.3, "beta_T": 0.2}, "beta_1.*beta_T.*0.3.*0.2"),
    ],
)
def test_bad_settings_are_named(changed, named):
    with pytest.raises(ValueError, match=named):
        BaseScheduler(**{"num_train_timesteps": 10} | changed)


def test_extract_takes_every_form_of_t():
    table, x = torch.arange(10.0) ** 2, torch.zeros(3, 2, 4)
    for t in ([3, 0, 4], [[3], [0], [4]]):
        for dtype in (torch.int64, torch.int32, torch.uint8, torch.float32, torch.float64):
            assert extract(table, torch.tensor(t, dtype=dtype), x).tolist() == [[[9.0]], [[0.0]], [[16.0]]]
    for t in (4, torch.tensor(4), torch.tensor([4]), torch.tensor(4.0), torch.tensor([[4]])):
        assert extract(table, t, x).tolist() == [[[16.0]]]


def test_timesteps_that_are_not_in_the_schedule_are_rejected():
    for t in (10, -1, torch.tensor([0, 10]), torch.tensor([-1, 3])):
        with pytest.raises(RuntimeError):
            extract(torch.arange(10.0), t, torch.zeros(2, 2))
    for t in (0.5, torch.tensor([1.0, 2.5]), torch.tensor(float("nan"))):
        with pytest.raises(ValueError):
            as_timesteps(t, torch.device("cpu"))
