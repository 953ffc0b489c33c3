"""A student's Task 2, written over the lab's skeleton in another style than the project's: the schedule."""

import math

import numpy as np
import torch
import torch.nn as nn


def extract(input, t, x):
    if not torch.is_tensor(t):
        t = torch.tensor([t])
    if t.ndim == 0:
        t = t.unsqueeze(0)
    t = t.long().to(input.device)
    return torch.gather(input, 0, t).reshape(t.shape[0], *([1] * (x.ndim - 1)))


class BaseScheduler(nn.Module):
    def __init__(self, num_train_timesteps, beta_1, beta_T, mode="linear"):
        super().__init__()
        self.num_train_timesteps = T = num_train_timesteps
        self.timesteps = torch.from_numpy(np.arange(0, T)[::-1].copy().astype(np.int64))
        if mode == "linear":
            betas = torch.linspace(beta_1, beta_T, steps=T)
        elif mode == "quad":
            betas = torch.linspace(beta_1**0.5, beta_T**0.5, T) ** 2
        elif mode == "cosine":
            s = 0.008
            steps = torch.arange(T + 1, dtype=torch.float64) / T
            alpha_bar = torch.cos((steps + s) / (1 + s) * math.pi / 2) ** 2
            alpha_bar = alpha_bar / alpha_bar[0]
            betas = 1 - alpha_bar[1:] / alpha_bar[:-1]
            betas = betas.clamp(0, 0.999).float()
        else:
            raise NotImplementedError(f"{mode} is not implemented.")
        alphas = 1 - betas
        self.register_buffer("betas", betas)
        self.register_buffer("alphas", alphas)
        self.register_buffer("alphas_cumprod", torch.cumprod(alphas, dim=0))

    def uniform_sample_t(self, batch_size, device=None):
        ts = torch.from_numpy(np.random.choice(np.arange(self.num_train_timesteps), batch_size))
        return ts if device is None else ts.to(device)


class DDPMScheduler(BaseScheduler):
    def __init__(self, num_train_timesteps, beta_1, beta_T, mode="linear", sigma_type="small"):
        super().__init__(num_train_timesteps, beta_1, beta_T, mode)
        if sigma_type == "small":
            prev = torch.cat([torch.tensor([1.0]), self.alphas_cumprod[:-1]])
            var = (1 - prev) / (1 - self.alphas_cumprod) * self.betas
        else:
            var = self.betas
        self.register_buffer("sigmas", var**0.5)

    def step(self, x_t, t, net_out, predictor):
        if predictor == "noise":
            return self.step_predict_noise(x_t, t, net_out)
        elif predictor == "x0":
            return self.step_predict_x0(x_t, t, net_out)
        elif predictor == "mean":
            return self.step_predict_mean(x_t, t, net_out)
        raise ValueError(f"Unknown predictor: {predictor}")

    def bar_prev(self, t, x):
        return extract(self.alphas_cumprod, t - 1, x) if t > 0 else torch.ones_like(extract(self.betas, 0, x))

    def step_predict_noise(self, x_t, t, eps_theta):
        beta_t = extract(self.betas, t, x_t)
        alpha_t = extract(self.alphas, t, x_t)
        alpha_bar_t = extract(self.alphas_cumprod, t, x_t)
        mean = 1 / alpha_t.sqrt() * (x_t - beta_t / (1 - alpha_bar_t).sqrt() * eps_theta)
        sample_prev = mean
        if t > 0:
            sample_prev = mean + extract(self.sigmas, t, x_t) * torch.randn_like(x_t)
        return sample_prev

    def step_predict_x0(self, x_t, t, x0_pred):
        beta_t = extract(self.betas, t, x_t)
        alpha_t = extract(self.alphas, t, x_t)
        alpha_bar_t = extract(self.alphas_cumprod, t, x_t)
        alpha_bar_prev = self.bar_prev(t, x_t)
        c0 = alpha_bar_prev.sqrt() * beta_t / (1 - alpha_bar_t)
        ct = alpha_t.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar_t)
        x0_mean = c0 * x0_pred + ct * x_t
        if t == 0:
            return x0_mean
        return x0_mean + extract(self.sigmas, t, x_t) * torch.randn_like(x_t)

    def step_predict_mean(self, x_t, t, mean_theta):
        sigma_t = extract(self.sigmas, t, x_t)
        noise = torch.randn_like(x_t) if t > 0 else torch.zeros_like(x_t)
        sample_prev = mean_theta + sigma_t * noise
        return sample_prev

    def add_noise(self, x_0, t, eps=None):
        if eps is None:
            eps = torch.randn(x_0.shape, device="cuda")
        alpha_bar_t = extract(self.alphas_cumprod, t, x_0)
        x_t = alpha_bar_t.sqrt() * x_0 + (1 - alpha_bar_t).sqrt() * eps
        return x_t, eps
