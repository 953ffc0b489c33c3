"""A student's Task 1, written over the lab's skeleton in another style than the project's: the diffusion."""

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm


def extract(input, t, x):
    if t.ndim == 0:
        t = t.unsqueeze(0)
    t = t.long().to(input.device)
    out = torch.gather(input, 0, t)
    return out.reshape(t.shape[0], *([1] * (x.ndim - 1)))


class BaseScheduler(nn.Module):
    def __init__(self, num_train_timesteps, beta_1=1e-4, beta_T=0.02, mode="linear"):
        super().__init__()
        self.num_train_timesteps = num_train_timesteps
        self.timesteps = torch.from_numpy(np.arange(0, num_train_timesteps)[::-1].copy())
        betas = torch.linspace(beta_1, beta_T, steps=num_train_timesteps)
        alphas = 1 - betas
        self.register_buffer("betas", betas)
        self.register_buffer("alphas", alphas)
        self.register_buffer("alphas_cumprod", torch.cumprod(alphas, dim=0))


class DiffusionModule(nn.Module):
    def __init__(self, network, var_scheduler, **kwargs):
        super().__init__()
        self.network = network
        self.var_scheduler = var_scheduler

    @property
    def device(self):
        return next(self.network.parameters()).device

    def q_sample(self, x0, t, noise=None):
        if noise is None:
            noise = torch.randn_like(x0)
        alphas_prod_t = extract(self.var_scheduler.alphas_cumprod, t, x0)
        xt = alphas_prod_t.sqrt() * x0 + (1 - alphas_prod_t).sqrt() * noise
        return xt

    @torch.no_grad()
    def p_sample(self, xt, t):
        if isinstance(t, int):
            t = torch.tensor([t]).to(self.device)
        beta_t = extract(self.var_scheduler.betas, t, xt)
        alpha_t = extract(self.var_scheduler.alphas, t, xt)
        alpha_bar_t = extract(self.var_scheduler.alphas_cumprod, t, xt)
        alpha_bar_t_prev = extract(self.var_scheduler.alphas_cumprod, (t - 1).clamp(min=0), xt)
        eps_factor = beta_t / (1 - alpha_bar_t).sqrt()
        eps = self.network(xt, t)
        mean = (xt - eps_factor * eps) / alpha_t.sqrt()
        var = (1 - alpha_bar_t_prev) / (1 - alpha_bar_t) * beta_t
        z = torch.randn_like(xt)
        mask = (t > 0).float().reshape(-1, *([1] * (xt.ndim - 1)))
        x_t_prev = mean + mask * var.sqrt() * z
        return x_t_prev

    @torch.no_grad()
    def p_sample_loop(self, shape):
        x = torch.randn(shape).to(self.device)
        for t in tqdm(self.var_scheduler.timesteps):
            x = self.p_sample(x, t)
        x0_pred = x
        return x0_pred

    @torch.no_grad()
    def ddim_p_sample(self, xt, t, t_prev, eta=0.0):
        ab = extract(self.var_scheduler.alphas_cumprod, t, xt)
        ab_prev = extract(self.var_scheduler.alphas_cumprod, t_prev, xt) if t_prev >= 0 else torch.ones_like(ab)
        eps = self.network(xt, t)
        x0 = (xt - (1 - ab).sqrt() * eps) / ab.sqrt()
        var = eta**2 * (1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev)
        x_t_prev = ab_prev.sqrt() * x0 + (1 - ab_prev - var).sqrt() * eps + var.sqrt() * torch.randn_like(xt)
        return x_t_prev

    @torch.no_grad()
    def ddim_p_sample_loop(self, shape, num_inference_timesteps=50, eta=0.0):
        step_ratio = self.var_scheduler.num_train_timesteps // num_inference_timesteps
        timesteps = (np.arange(0, num_inference_timesteps) * step_ratio).round()[::-1].copy().astype(np.int64)
        timesteps = torch.from_numpy(timesteps)
        prev_timesteps = timesteps - step_ratio
        xt = torch.randn(shape).to(self.device)
        for t, t_prev in zip(timesteps, prev_timesteps):  # noqa: B905
            xt = self.ddim_p_sample(xt, t, t_prev, eta)
        return xt

    def compute_loss(self, x0):
        batch_size = x0.shape[0]
        T = self.var_scheduler.num_train_timesteps
        t = torch.randint(0, T, size=(batch_size,)).to(x0.device).long()
        noise = torch.randn_like(x0)
        xt = self.q_sample(x0, t, noise)
        eps_pred = self.network(xt, t)
        loss = F.mse_loss(eps_pred, noise)
        return loss
