"""Draw images from a trained model.

    python sampling.py --ckpt_path results/predictor_noise/beta_linear/11-23-204512/last.ckpt --save_dir samples/linear

The save folder gets 0.png, 1.png, ... and nothing else, as the FID program measures every image in it. Schedule
and predictor come from the checkpoint. Image i follows from the seed and i, in whichever batch it is made; after a
stop, the same command makes the images that are missing.
"""

import argparse
import hashlib
import json
from contextlib import ExitStack
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from tqdm import tqdm

import speed
from atomic import atomic_write, is_partial, lock_folder, remove_partials
from cli import ArgumentParser, UserError, exit_on_user_error, float_range, int_range
from data_folder import check_writable
from dataset import tensor_to_pil_image
from distributed import Distributed
from image_grid import trajectory_frames, trajectory_image
from model import DiffusionModule
from samplers import METHODS, ImageNoise, sampling_timesteps
from scheduler import MODES, PREDICTORS

SETTINGS_KEY = "Made by"  # the text in each image that says with which settings it was made


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--ckpt_path", type=Path, required=True, metavar="FILE", help="a checkpoint that train.py wrote")
    add("--save_dir", type=Path, required=True, metavar="DIR", help="new folder, or one to go on with")
    add("--num_samples", type=int_range(1), default=500, metavar="N", help="how many images (default: 500)")
    add("--batch_size", type=int_range(1), default=64, metavar="N", help="images at a time (default: 64)")
    add("--seed", type=int_range(0, 2**63 - 1), default=0, metavar="N", help="of the noise (default: 0)")
    add("--sample_method", choices=METHODS, default="ddpm", help="how the chain goes back (default: ddpm)")
    steps_help = "how often the network is asked (default: 50 for ddim, 20 for dpm; ddpm takes all)"
    add("--num_inference_steps", type=int_range(1), metavar="N", help=steps_help)
    add("--eta", type=float_range(0, 1), help="fresh noise of ddim, 0: none, 1: as ddpm (default: 0)")
    add("--weights", choices=["ema", "last"], default="ema", help="the averaged ones or the last (default: ema)")
    add("--use_cfg", action="store_true", help="each class in turn, with guidance; without it, no class")
    add("--cfg_scale", type=float_range(0, 100), metavar="S", help="its strength, with --use_cfg (default: 7.5)")
    add("--save_traj", action="store_true", help="also ten stations of each chain, in the folder DIR_traj beside DIR")
    add("--mode", choices=MODES, help="checked against the checkpoint")
    add("--predictor", choices=PREDICTORS, help="checked against the checkpoint")
    precision = "of the network; auto: bf16 where the hardware has it (default: auto)"
    add("--precision", choices=speed.PRECISIONS, default="auto", help=precision)
    add("--compile", choices=speed.AUTO_ON_OFF, default="auto", help="fuse operations; auto: on GPUs, when it pays")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, mps (default: auto)")
    add("--gpu", type=int_range(0), default=0, metavar="I", help="index of the GPU (default: 0)")
    args = parser.parse_args(argv)
    if args.cfg_scale is not None and not args.use_cfg:
        parser.error("argument --cfg_scale: does nothing without --use_cfg")
    if args.cfg_scale is None:
        args.cfg_scale = 7.5
    if args.eta is not None and args.sample_method != "ddim":
        parser.error("argument --eta: does nothing without --sample_method ddim")
    if args.eta is None:
        args.eta = 0.0
    return args


class SavedImages:
    """The images of a save folder, each marked with the settings that it was made with.

    Args:
        folder: the save folder, made if it is not there.
        settings: whatever an image depends on besides its number.
    """

    def __init__(self, folder: Path, settings: dict):
        check_writable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.mark = json.dumps(settings, sort_keys=True)

    def missing(self, num_samples: int) -> list[int]:
        """Which of the images 0 .. num_samples - 1 are yet to be made.

        Raises:
            ValueError: when the folder holds anything else, which the FID would measure as well.
        """
        wanted = {f"{i}.png": i for i in range(num_samples)}
        there = sorted(path.name for path in self.folder.iterdir() if not is_partial(path))
        if strangers := [name for name in there if name not in wanted]:
            raise UserError(
                f"argument --save_dir: {self.folder} holds {strangers[0]}, which is not one of the {num_samples} "
                "images that were asked for: choose another folder"
            )
        remove_partials(self.folder)
        whole = {wanted[name] for name in there if self._is_whole(self.folder / name)}
        return [i for i in range(num_samples) if i not in whole]

    def _is_whole(self, path: Path) -> bool:
        mark = None
        try:
            with Image.open(path) as image:
                mark = image.info.get(SETTINGS_KEY)
                image.load()
            whole = True
        except (OSError, SyntaxError, ValueError):
            whole = False
        if mark != self.mark:
            raise UserError(
                f"argument --save_dir: {path} was not made with these settings ({_difference(mark, self.mark)}): "
                "choose another folder"
            )
        return whole

    def save(self, i: int, image: Image.Image) -> None:
        """Write image i."""
        info = PngImagePlugin.PngInfo()
        info.add_text(SETTINGS_KEY, self.mark)
        with atomic_write(self.folder / f"{i}.png") as file:
            image.save(file, format="PNG", pnginfo=info)


def _difference(theirs: str | None, ours: str) -> str:
    """In which settings two marks differ."""
    try:
        theirs, ours = json.loads(theirs), json.loads(ours)
        return ", ".join(
            f"{name} {theirs[name]} there, {ours[name]} here" for name in ours if theirs[name] != ours[name]
        )
    except (TypeError, ValueError, KeyError):
        return "it carries no mark of this program"


def sample(args: argparse.Namespace, cleanup: ExitStack) -> None:
    """Draw and save the images that are not there yet. What must be given back goes to `cleanup`.

    Raises:
        ValueError, OSError: for settings or files that do not fit, with a line for the user.
    """
    processes = Distributed()
    device = processes.device(args.device, args.gpu)
    if args.ckpt_path.is_dir():
        raise UserError(f"argument --ckpt_path: {args.ckpt_path} is a folder; try {args.ckpt_path / 'last.ckpt'}")
    check_writable(args.save_dir)
    ddpm = DiffusionModule(None, None).eval()
    ddpm.load(args.ckpt_path, args.weights)
    for flag, given, has in [
        ("--mode", args.mode, ddpm.var_scheduler.config["mode"]),
        ("--predictor", args.predictor, ddpm.predictor),
    ]:
        if given not in (None, has):
            raise UserError(f"argument {flag}: {given} was asked for, but {args.ckpt_path} was trained with {has}")
    if args.use_cfg and not ddpm.network.use_cfg:
        raise UserError(f"argument --use_cfg: {args.ckpt_path} was trained without it")
    ddpm.bf16 = speed.uses_bf16(args.precision, device)
    how = args.sample_method, args.num_inference_steps, args.eta
    try:
        timesteps = sampling_timesteps(ddpm.var_scheduler, *how)
    except ValueError as error:
        raise UserError(f"argument --{error}") from None
    num_steps = len(timesteps)
    leaps = num_steps < ddpm.var_scheduler.num_train_timesteps
    if processes.is_rank_zero and leaps and (ddpm.predictor, ddpm.parametrization) == ("mean", "direct"):
        print(
            "note: of a network that gives the mean itself, errors grow with the steps left out; ddpm leaves none out"
        )
    settings = {
        "model": model_hash(ddpm),
        "seed": args.seed,
        "sample_method": args.sample_method,
        "num_inference_steps": num_steps,
        "eta": args.eta if args.sample_method == "ddim" else None,
        "cfg_scale": args.cfg_scale if args.use_cfg else None,
        "device": device.type,  # each kind draws other noise
        "precision": "bf16" if ddpm.bf16 else "fp32",
    }
    kept = [SavedImages(args.save_dir, settings)]
    if args.save_traj:
        beside = args.save_dir.resolve()
        kept.append(SavedImages(beside.with_name(f"{beside.name}_traj"), settings))
    processes.connect(device)
    cleanup.callback(processes.close)

    def look_for_missing() -> list[int]:
        for images in kept:
            cleanup.enter_context(lock_folder(images.folder))
        missing = sorted({i for images in kept for i in images.missing(args.num_samples)})
        if len(missing) < args.num_samples:
            print(f"{args.num_samples - len(missing)} of {args.num_samples} images are there already")
        return missing

    missing = processes.on_rank_zero(look_for_missing)[processes.share]

    speed.place_network(ddpm, device, ddpm.bf16)
    num_batches = -(-len(missing) // args.batch_size)
    compiles = speed.should_compile(args.compile, device, num_batches * num_steps)
    if compiles:
        ddpm.network = speed.compile_network(ddpm.network)  # which passes on what else it is asked, as its num_classes
    for first in tqdm(range(0, len(missing), args.batch_size), desc="batches", **processes.tqdm_options):
        numbers = missing[first : first + args.batch_size]
        # What is compiled is compiled for one size: fill the last batch up, and throw away what was filled in.
        drawn = numbers + numbers[-1:] * (args.batch_size - len(numbers)) if compiles else numbers
        labels, scale = None, 1.0
        if args.use_cfg:
            labels = torch.tensor([i % ddpm.network.num_classes + 1 for i in drawn])
            scale = args.cfg_scale
        noise = ImageNoise(args.seed, drawn, ddpm.image_resolution, device)
        chain = ddpm.reverse_process(
            len(drawn),
            labels,
            scale,
            args.sample_method,
            timesteps,
            args.eta,
            randn_like=noise,
            progress=processes.is_rank_zero,
        )
        frames = trajectory_frames(chain, num_steps)
        for k, (i, image) in enumerate(zip(numbers, tensor_to_pil_image(frames[-1]), strict=False)):
            for images, picture in zip(kept, [image, trajectory_image(frames[:, k : k + 1])], strict=False):
                images.save(i, picture)
    processes.barrier()  # wait for the others
    if processes.is_rank_zero:
        print(f"{args.num_samples} images in {args.save_dir}")


def model_hash(ddpm: DiffusionModule) -> str:
    """16 hex digits that change with anything in a model that its images depend on."""
    checkpoint = ddpm.checkpoint()
    digest = hashlib.sha256()
    for name, tensor in checkpoint.pop("state_dict").items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    digest.update(json.dumps(checkpoint, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def main() -> None:
    """The program: errors in what the user gave are one line and exit code 2."""
    with exit_on_user_error(interrupted="stopped; the same command goes on"), ExitStack() as cleanup:
        sample(parse_arguments(), cleanup)


if __name__ == "__main__":
    main()
