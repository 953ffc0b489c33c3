"""What the lab's notebook does, cell by cell, with these modules."""

import torch

from chamferdist import chamfer_distance
from dataset import TwoDimDataClass, get_data_iterator
from ddpm import BaseScheduler, DiffusionModule
from network import SimpleNet


def test_every_cell_of_the_labs_notebook_runs_and_the_model_learns():
    # Data
    device, n, T = "cpu", 1000, 100
    target_ds = TwoDimDataClass(dataset_type="swiss_roll", N=10_000, batch_size=128)
    prior_ds = TwoDimDataClass(dataset_type="gaussian_centered", N=n, batch_size=128)
    train_iterator = get_data_iterator(target_ds.get_dataloader())

    # Model
    network = SimpleNet(dim_in=2, dim_out=2, dim_hids=[64, 64], num_timesteps=T)
    var_scheduler = BaseScheduler(num_train_timesteps=T, beta_1=1e-4, beta_T=0.1, mode="linear")
    ddpm = DiffusionModule(network, var_scheduler).to(device)

    # q(x_t): fewer traces of the data at each t
    deviations = []
    for t in range(0, T, 20):
        x_t = ddpm.q_sample(target_ds[:n].to(device), (torch.ones(n) * t).long().to(device)).cpu()
        assert x_t.shape == (n, 2)
        deviations.append(x_t.std().item())
    assert deviations == sorted(deviations, reverse=True)

    # Training
    optimizer = torch.optim.Adam(ddpm.network.parameters(), lr=1e-3)
    losses = []
    for _ in range(500):
        loss = ddpm.compute_loss(next(train_iterator).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-100:]) < 0.8 * 5 * sum(losses[:20])

    # Evaluation
    ddpm.eval()
    with torch.no_grad():
        samples = ddpm.p_sample_loop(shape=(n, 2)).cpu()
    target = target_ds[:n].cpu().numpy()
    distance = chamfer_distance(samples.cpu().numpy(), target)
    assert distance.item() < chamfer_distance(prior_ds[:n].cpu().numpy(), target).item() / 5
