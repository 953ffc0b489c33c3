"""A student's Task 2, written over the lab's skeleton in another style than the project's: losses and sampling."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from scheduler import extract


class DiffusionModule(nn.Module):
    def __init__(self, network, var_scheduler, predictor="noise"):
        super().__init__()
        self.network = network
        self.var_scheduler = var_scheduler
        self.predictor = predictor

    @property
    def device(self):
        return next(self.network.parameters()).device

    @property
    def image_resolution(self):
        return self.network.image_resolution

    def get_loss(self, x0, class_label=None, noise=None):
        if self.predictor == "noise":
            return self.get_loss_noise(x0, class_label, noise)
        elif self.predictor == "x0":
            return self.get_loss_x0(x0, class_label, noise)
        elif self.predictor == "mean":
            return self.get_loss_mean(x0, class_label, noise)
        raise ValueError(f"Unknown predictor: {self.predictor}")

    def get_loss_noise(self, x0, class_label=None, noise=None):
        t = self.var_scheduler.uniform_sample_t(x0.shape[0], self.device)
        x_t, noise = self.var_scheduler.add_noise(x0, t, noise)
        loss = F.mse_loss(self.network(x_t, timestep=t, class_label=class_label), noise)
        return loss

    def get_loss_x0(self, x0, class_label=None, noise=None):
        B = x0.shape[0]
        t = self.var_scheduler.uniform_sample_t(B, self.device)
        x_t, noise = self.var_scheduler.add_noise(x0, t, noise)
        x0_pred = self.network(x_t, t)
        loss = ((x0_pred - x0) ** 2).mean()
        return loss

    def get_loss_mean(self, x0, class_label=None, noise=None):
        t = self.var_scheduler.uniform_sample_t(x0.shape[0], self.device)
        x_t, noise = self.var_scheduler.add_noise(x0, t, noise)
        sched = self.var_scheduler
        ab = extract(sched.alphas_cumprod, t, x0)
        ab_prev = extract(torch.cat([torch.ones(1).to(ab), sched.alphas_cumprod[:-1]]), t, x0)
        a, b = extract(sched.alphas, t, x0), extract(sched.betas, t, x0)
        true_mean = ab_prev.sqrt() * b / (1 - ab) * x0 + a.sqrt() * (1 - ab_prev) / (1 - ab) * x_t
        return F.mse_loss(self.network(x_t, t), true_mean)

    @torch.no_grad()
    def sample(self, batch_size, return_traj=False, class_label=None, guidance_scale=0.0):
        x_T = torch.randn([batch_size, 3, self.image_resolution, self.image_resolution]).to(self.device)
        traj = [x_T]
        for t in tqdm(self.var_scheduler.timesteps):
            x_t = traj[-1]
            net_out = self.network(x_t, timestep=t.to(self.device), class_label=class_label)
            x_t_prev = self.var_scheduler.step(x_t, t, net_out, predictor=self.predictor)
            traj[-1] = traj[-1].cpu()
            traj.append(x_t_prev.detach())
        return traj if return_traj else traj[-1]
