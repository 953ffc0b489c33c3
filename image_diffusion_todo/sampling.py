"""Sample images from a trained model.

    python sampling.py --ckpt_path results/predictor_noise/beta_linear/11-23-204512/last.ckpt --save_dir samples/linear

The save folder will hold 0.png, 1.png, ... and nothing else, since the FID program measures every image in it. The
schedule and the predictor come from the checkpoint. Image i depends on the seed and on i, not on its batch; after a
stop, the same command makes the missing images.
"""

import argparse
import hashlib
import json
import unicodedata
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import speed
from atomic import atomic_write, lock_folder
from checkpoint import build_network
from cli import ArgumentParser, UserError, check_writable, exit_on_user_error, float_range, int_range, note
from dataset import tensor_to_pil_image
from distributed import Distributed
from image_grid import image_grid, trajectory_frames, trajectory_image
from lab_checkpoint import read_lab_checkpoint
from model import DiffusionModule
from prediction import should_clip_x0
from progress import tqdm
from sample_folder import SampleFolder
from samplers import METHODS, ImageNoise, sampling_timesteps
from scheduler import MODES, PREDICTORS, DDPMScheduler

SCHEDULE_FLAGS = ("mode", "beta_1", "beta_T", "predictor")
CHAINS, FRAMES, GIF_FRAMES = 8, 10, 100  # of --save_traj and --save_gif


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument_group("files").add_argument
    what = "checkpoint of train.py or of the lab's skeleton, or the folder of a run"
    add("--ckpt_path", type=Path, required=True, metavar="FILE", help=what)
    add("--save_dir", type=Path, required=True, metavar="DIR", help="folder for the images, new or to be completed")
    add("--save_traj", action="store_true", help=f"also DIR_traj.png: {FRAMES} frames of the first {CHAINS} chains")
    add("--save_gif", action="store_true", help="also DIR.gif: the same chains as an animation")
    add = parser.add_argument_group("images").add_argument
    add("--num_samples", type=int_range(1), default=500, metavar="N", help="how many images")
    add("--seed", type=int_range(0, 2**63 - 1), default=0, metavar="N", help="of the noise")
    add("--use_cfg", action="store_true", help="each class in turn, with classifier-free guidance; else no class")
    add("--classes", nargs="+", metavar="NAME", help="with --use_cfg, these classes in turn")
    add("--cfg_scale", type=float_range(0, 100), default=7.5, metavar="S", help="guidance scale, with --use_cfg")
    add("--weights", choices=["ema", "last"], default="ema", help="the averaged weights or the latest ones")
    add = parser.add_argument_group("sampler").add_argument
    add("--sample_method", choices=METHODS, default="ddpm", help="sampler")
    steps = "network evaluations (default: 50 for ddim, 20 for dpm; ddpm takes all T)"
    add("--num_inference_steps", type=int_range(1), metavar="N", help=steps)
    add("--eta", type=float_range(0, 1), default=0.0, help="share of fresh noise in ddim, 0: none, 1: as ddpm")
    last = "ddim and dpm end with the x_0 that is predicted at timestep N"
    add("--last_timestep", type=int_range(0), default=0, metavar="N", help=last)
    clip = "clamp each predicted x_0 to [-1, 1], as DDPM's own code does and the lab does not (default: not with a "
    clip += "direct mean)"
    add("--clip_x0", action=argparse.BooleanOptionalAction, help=clip)
    add = parser.add_argument_group("checked against the checkpoint").add_argument
    add("--mode", choices=MODES, help="schedule")
    add("--beta_1", type=float_range(1e-9, 0.999), metavar="B", help="its first beta")
    add("--beta_T", type=float_range(1e-9, 0.999), metavar="B", help="its last beta")
    add("--predictor", choices=PREDICTORS, help="what the network predicts")
    add = parser.add_argument_group("hardware").add_argument
    add("--batch_size", type=int_range(1), default=64, metavar="N", help="images at a time")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or mps")
    add("--gpu", type=int_range(0), default=0, metavar="I", help="index of the GPU")
    precision = "of the network; auto: bf16 or fp16 where it is fast"
    add("--precision", choices=speed.PRECISIONS, default="auto", help=precision)
    add("--compile", choices=speed.AUTO_ON_OFF, default="auto", help="fuse operations; auto: on GPUs, when it pays")
    args = parser.parse_args(argv)
    for name in ("cfg_scale", "classes"):
        if not args.use_cfg and getattr(args, name) != parser.get_default(name):
            parser.error(f"argument --{name}: has no effect without --use_cfg")
    return args


def load_model(args: argparse.Namespace) -> DiffusionModule:
    """The model of a checkpoint, in eval mode; UserError when it contradicts the flags."""
    path = args.ckpt_path / "last.ckpt" if args.ckpt_path.is_dir() else args.ckpt_path
    ddpm = DiffusionModule(None, None)
    try:
        ddpm.load(path, args.weights)
    except UserError:
        given = {name: getattr(args, name) for name in SCHEDULE_FLAGS if getattr(args, name) is not None}
        checkpoint = read_lab_checkpoint(path, **given)
        if checkpoint is None:
            raise
        scheduler = DDPMScheduler(**checkpoint["var_scheduler"])
        ddpm = DiffusionModule(build_network(checkpoint), scheduler, checkpoint["predictor"])
    config = ddpm.var_scheduler.config | {"predictor": ddpm.predictor}
    for name in SCHEDULE_FLAGS:
        if getattr(args, name) not in (None, config[name]):
            raise UserError(f"argument --{name}: {getattr(args, name)} given, but {path} has {config[name]}")
    if args.use_cfg and not ddpm.network.use_cfg:
        raise UserError(f"argument --use_cfg: {path} was trained without it")
    return ddpm.eval()


def class_labels(args: argparse.Namespace, ddpm: DiffusionModule) -> dict[str, int]:
    """The names and labels of the classes to sample; classes without names have their numbers."""
    names = ddpm.classes or [str(label + 1) for label in range(ddpm.network.num_classes)]
    labels = {name: label + 1 for label, name in enumerate(names)}
    chosen = [unicodedata.normalize("NFC", name) for name in args.classes or names]
    if unknown := [name for name in chosen if name not in labels]:
        raise UserError(f"argument --classes: {unknown[0]!r} is not one of {', '.join(names)}")
    return {name: labels[name] for name in chosen}


def sample(args: argparse.Namespace, cleanup: ExitStack) -> None:
    """Sample and save the missing images; what must be closed is registered with `cleanup`."""
    distributed = Distributed()
    device = distributed.device(args.device, args.gpu)
    check_writable(args.save_dir)
    ddpm = load_model(args)
    ddpm.precision = speed.select_precision(args.precision, device)
    try:
        timesteps = sampling_timesteps(
            ddpm.var_scheduler, args.sample_method, args.num_inference_steps, args.eta, args.last_timestep
        )
    except ValueError as error:
        raise UserError(f"argument --{error}") from None
    skips_steps = len(timesteps) < ddpm.var_scheduler.num_train_timesteps
    if distributed.is_rank_zero and skips_steps and (ddpm.predictor, ddpm.parametrization) == ("mean", "direct"):
        note("direct mean prediction is inaccurate when steps are skipped; --sample_method ddpm skips none")
    if args.clip_x0 is None:
        args.clip_x0 = should_clip_x0(ddpm.predictor, ddpm.parametrization)
    labels = class_labels(args, ddpm) if args.use_cfg else {}
    settings = {
        "model": model_hash(ddpm),
        "seed": args.seed,
        "sample_method": args.sample_method,
        "num_inference_steps": len(timesteps),
        "eta": args.eta if args.sample_method == "ddim" else None,
        "last_timestep": args.last_timestep or None,
        "cfg_scale": args.cfg_scale if args.use_cfg else None,
        "classes": list(labels) if args.classes else None,
        "clip_x0": args.clip_x0 or None,
        "device": device.type,  # each kind draws other noise
        "precision": ddpm.precision,
    }
    distributed.connect(device)
    cleanup.callback(distributed.close)
    folder = SampleFolder(args.save_dir, settings)

    def find_missing() -> list[int]:
        cleanup.enter_context(lock_folder(args.save_dir))
        missing = folder.missing(args.num_samples)
        if len(missing) < args.num_samples:
            print(f"{args.num_samples - len(missing)} of {args.num_samples} images exist already")
        return missing

    missing = distributed.on_rank_zero(find_missing)
    chains = list(range(min(CHAINS, args.num_samples, args.batch_size))) if args.save_traj or args.save_gif else []
    mine = [i for i in missing if i not in chains][distributed.share]
    batches = [mine[k : k + args.batch_size] for k in range(0, len(mine), args.batch_size)]
    if chains and distributed.is_rank_zero:  # a batch of their own, so that only it keeps frames
        batches.insert(0, chains)

    speed.place_network(ddpm, device, ddpm.precision)
    compiles = speed.should_compile(args.compile, device, len(batches) * len(timesteps))
    switch = args.compile if compiles else "off"
    if compiles:
        speed.compile_network(ddpm.network)

    def run_chains(indices: list[int], class_label: Tensor | None, keep_frames: bool) -> Tensor:
        """Frames [F, B, 3, H, W] of reverse chains; without keep_frames, the images alone."""
        scale = args.cfg_scale if args.use_cfg else 1.0
        sampler = dict(sample_method=args.sample_method, timesteps=timesteps, eta=args.eta, clip_x0=args.clip_x0)
        noise = ImageNoise(args.seed, indices, ddpm.image_resolution, device)
        chain = ddpm.reverse_process(
            len(indices), class_label, scale, **sampler, randn_like=noise, progress=distributed.is_rank_zero
        )
        return trajectory_frames(chain, len(timesteps), GIF_FRAMES if keep_frames else 1)

    for batch in tqdm(batches, desc="batches", **distributed.tqdm_options):
        # A compiled network takes one batch size: fill up, and drop the surplus.
        indices = batch + batch[-1:] * (args.batch_size - len(batch)) if compiles else batch
        names = [list(labels)[i % len(labels)] for i in indices] if labels else [None] * len(indices)
        class_label = torch.tensor([labels[name] for name in names]) if labels else None
        frames = speed.call_compiled(partial(run_chains, indices, class_label, batch == chains), switch, device)
        if batch == chains:
            save_chains(frames[:, : len(chains)], args)
        for i, image, name in zip(batch, tensor_to_pil_image(frames[-1]), names, strict=False):
            if batch != chains or i in missing:
                folder.save(i, image, name)
    distributed.barrier()
    if distributed.is_rank_zero:
        print(f"{args.num_samples} images in {args.save_dir}")


def save_chains(frames: Tensor, args: argparse.Namespace) -> None:
    """Write frames [F, B, 3, H, W] of reverse chains as a picture and an animation beside the save folder."""
    beside = args.save_dir.resolve()
    if args.save_traj:
        with atomic_write(beside.with_name(f"{beside.name}_traj.png")) as file:
            trajectory_image(trajectory_frames(frames, len(frames) - 1, FRAMES)).save(file, format="PNG")
    if args.save_gif:
        first, *others = (image_grid(x_t, per_row=4) for x_t in frames)
        durations = [50] * len(others) + [2000]  # milliseconds; the images stay longer
        with atomic_write(beside.with_name(f"{beside.name}.gif")) as file:
            first.save(file, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)


def model_hash(ddpm: DiffusionModule) -> str:
    """16 hex digits that depend on everything in a model that its images depend on."""
    checkpoint = ddpm.checkpoint()
    del checkpoint["classes"]
    if checkpoint["network"]["patch_size"] == 1:  # as in models from before there were patches
        checkpoint["network"] = {name: value for name, value in checkpoint["network"].items() if name != "patch_size"}
    digest = hashlib.sha256()
    for name, tensor in checkpoint.pop("state_dict").items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    digest.update(json.dumps(checkpoint, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def main() -> None:
    with exit_on_user_error(interrupted="stopped; the same command resumes"), ExitStack() as cleanup:
        sample(parse_arguments(), cleanup)


if __name__ == "__main__":
    main()
