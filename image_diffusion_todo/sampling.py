"""Draw images from a trained model.

    python sampling.py --ckpt_path results/predictor_noise/beta_linear/11-23-204512/last.ckpt --save_dir samples/linear

The save folder gets 0.png, 1.png, ... and nothing else, as the FID program measures every image in it. Schedule
and predictor come from the checkpoint.
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from dataset import tensor_to_pil_image
from model import DiffusionModule
from options import OneLineParser, choose_device, integer_from, number_between, writable_folder
from pictures import follow, trajectory_picture
from scheduler import MODES, PREDICTORS


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, metavar="FILE", help="a checkpoint that train.py wrote")
    add("--save_dir", type=writable_folder, required=True, metavar="DIR", help="new or empty folder for the images")
    add("--num_samples", type=integer_from(1), default=500, metavar="N", help="how many images (default: 500)")
    add("--batch_size", type=integer_from(1), default=64, metavar="N", help="images at a time (default: 64)")
    add("--seed", type=integer_from(0, 2**63 - 1), default=0, metavar="N", help="of the noise (default: 0)")
    add("--sample_method", choices=["ddpm"], default="ddpm", help="(default: ddpm)")
    add("--use_cfg", action="store_true", help="draw each class in turn, with guidance, from a model trained with it")
    add("--cfg_scale", type=number_between(0, 100), default=7.5, metavar="S", help="its strength (default: 7.5)")
    add("--save_traj", action="store_true", help="also ten stations of each chain, in the folder DIR_traj beside DIR")
    add("--mode", choices=MODES, help="checked against the checkpoint")
    add("--predictor", choices=PREDICTORS, help="checked against the checkpoint")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, mps (default: auto)")
    add("--gpu", type=integer_from(0), default=0, metavar="I", help="index of the GPU (default: 0)")
    return parser.parse_args(argv)


def sample(args: argparse.Namespace) -> None:
    """Draw and save the images.

    Raises:
        ValueError, OSError: for settings or files that do not fit, with a line for the user.
    """
    device = choose_device(args.device, args.gpu)
    ddpm = DiffusionModule(None, None)
    ddpm.load(args.ckpt_path)
    ddpm.to(device).eval()
    for flag, given, has in [
        ("--mode", args.mode, ddpm.var_scheduler.config["mode"]),
        ("--predictor", args.predictor, ddpm.predictor),
    ]:
        if given not in (None, has):
            raise ValueError(f"argument {flag}: {given} was asked for, but {args.ckpt_path} was trained with {has}")
    if args.use_cfg and not ddpm.network.use_cfg:
        raise ValueError(f"argument --use_cfg: {args.ckpt_path} was trained without it")
    if any(args.save_dir.iterdir()):
        raise ValueError(f"argument --save_dir: {args.save_dir} is not empty")
    if args.save_traj:
        traj_dir = args.save_dir.with_name(args.save_dir.name + "_traj")
        traj_dir.mkdir(exist_ok=True)

    torch.manual_seed(args.seed)
    for first in tqdm(range(0, args.num_samples, args.batch_size), desc="batches"):
        numbers = range(first, min(first + args.batch_size, args.num_samples))
        labels, scale = None, 1.0
        if args.use_cfg:
            labels = torch.tensor([i % ddpm.network.num_classes + 1 for i in numbers], device=device)
            scale = args.cfg_scale
        chain = ddpm.reverse_process(len(numbers), labels, scale)
        frames = follow(chain, ddpm.var_scheduler.num_train_timesteps)
        for k, (i, image) in enumerate(zip(numbers, tensor_to_pil_image(frames[-1]), strict=True)):
            image.save(args.save_dir / f"{i}.png")
            if args.save_traj:
                trajectory_picture(frames[:, k : k + 1]).save(traj_dir / f"{i}.png")


def main() -> None:
    """The program: errors in what the user gave are one line and exit code 2."""
    try:
        sample(parse_arguments())
    except (ValueError, OSError) as error:
        print(f"sampling.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
