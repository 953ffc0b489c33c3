"""Training runs and distances as train.py and fid/measure_fid.py leave them, of untrained networks."""

import json

import torch

from checkpoint import write_checkpoint
from common import write
from conftest import SMALL_UNET
from model import DiffusionModule
from network import UNet
from oracles import awake
from scheduler import DDPMScheduler

T, SIZE = 12, 8  # of the small network


def make_run(root, mode, predictor, name="11-24-120000", step=100, size=SIZE, weights=0, **config):
    """The folder of a run as train.py leaves it, of an untrained network."""
    config = dict(parametrization="direct", loss_weight="none", seed=63, batch_size=4, use_cfg=False, ch=32) | config
    config |= dict(mode=mode, predictor=predictor, image_resolution=size, num_diffusion_train_timesteps=T, ch_mult=[1])
    config |= dict(learning_rate=1e-3, classes=["cat", "wild"], num_images=12, synthetic_faces=False)
    folder = root / f"predictor_{predictor}" / f"beta_{mode}" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(weights)
    network = awake(UNet(T=T, **(SMALL_UNET | {"image_resolution": size})))
    schedule = DDPMScheduler(T, 1e-3, 0.3, mode)
    ddpm = DiffusionModule(network, schedule, predictor, parametrization=config["parametrization"])
    last = {name: weight + 0.1 for name, weight in network.state_dict().items()}
    write_checkpoint(ddpm.checkpoint() | {"training": {"step": step, "network": last}}, folder / "last.ckpt")
    write(folder / "stats.csv", [{"step": s, "loss": f"{1 / s:.6f}"} for s in range(50, step + 1, 50)])
    return folder


def folder_of(root, mode, predictor, form="direct"):
    (folder,) = (root / form / f"predictor_{predictor}" / f"beta_{mode}").iterdir()
    return folder


def measured(path, gen_dir, distance, **changes):
    """What fid/measure_fid.py --json writes."""
    result = dict(
        name="FID",
        network="pytorch-fid",
        distance=distance,
        gt_images=5,
        gt_sizes=["8x8"],
        gt_synthetic=False,
        gen_images=3,
    )
    result |= dict(gen_dir=str(gen_dir), gen_sizes=["8x8"], weights_sha256="abc") | changes
    path.write_text(json.dumps(result))
    return path
