"""How much each lever of speed gives in training, against a plain loop around the same network.

    python benchmarks/training.py                                    # small; CPU or GPU
    python benchmarks/training.py --full --batch_size 16 128         # the lab's network at 64x64; for a GPU
    python benchmarks/training.py --json speed.json

The plain loop is what one writes first: images decoded in every epoch, attention as softmax(q k) v written out,
PyTorch's default Adam, memory order and precision (float32, on NVIDIA GPUs with TF32 in convolutions), and the loss
read from the device in every step. Then one lever after the other is added (on a CPU, that of bfloat16 takes the order
of channels back, see `speed.place_network`); the last row is the `Trainer` of train.py. All rows take
turns, so that a busy machine slows all of them; a figure is the median of its turns.
"""

import argparse
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "image_diffusion_todo"))

import module
import speed
import train
from cli import ArgumentParser, exit_on_user_error, float_range, int_range, select_device, writable_file
from data_folder import check_has_data
from dataset import AFHQDataModule, get_data_iterator, to_tensor
from images import resize
from model import DiffusionModule
from synthetic_faces import write_synthetic_set
from trainer import EMA, Trainer, build_model

LEVERS = (
    "cached bytes",
    "fused attention",
    "one-kernel Adam",
    "channels last",
    "losses read rarely",
    "TF32",
    "bf16",
    "compiled",
)
FULL = "--image_resolution 64"
SMALL = "--image_resolution 32 --ch 32 --ch_mult 1 2 2 --attn 1 --num_res_blocks 1"


def written_out_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(C)) v, with the whole matrix of weights in memory; shapes [B, 1, HW, C]."""
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v


@contextmanager
def settings_of(levers: Collection[str]) -> Iterator[None]:
    """Attention and the precision of float32 products, which belong to the whole process, as these levers have them."""
    attention, tf32 = module.F.scaled_dot_product_attention, torch.backends.cuda.matmul.allow_tf32
    if "fused attention" not in levers:
        module.F.scaled_dot_product_attention = written_out_attention
    torch.backends.cuda.matmul.allow_tf32 = "TF32" in levers
    try:
        yield
    finally:
        module.F.scaled_dot_product_attention, torch.backends.cuda.matmul.allow_tf32 = attention, tf32


class Decode:
    """The transform of a data set that is decoded in every epoch; a class, so that worker processes can have it."""

    def __init__(self, resolution: int):
        self.resolution = resolution

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return to_tensor(np.array(resize(image, self.resolution))).permute(2, 0, 1)


class Loop:
    """A training loop with some of the levers.

    Args:
        levers: those that are pulled.
        args: flags of train.py.
        data: the images.
        device: to train on.
    """

    def __init__(self, levers: frozenset[str], args: argparse.Namespace, data: AFHQDataModule, device: torch.device):
        self.levers, self.args, self.device = levers, args, device
        torch.manual_seed(args.seed)
        self.ddpm = build_model(args, data.num_classes).to(device)
        network = self.ddpm.network
        bf16 = "bf16" in levers and speed.uses_bf16("auto", device)
        if "channels last" in levers:
            speed.place_network(network, device, bf16)
        self.ema = EMA(network, args.ema_decay)
        weights = list(network.parameters())
        if "one-kernel Adam" in levers:
            self.optimizer = speed.adam(weights, args.learning_rate, device)
        else:
            self.optimizer = torch.optim.Adam(weights, lr=args.learning_rate)
        called = speed.compile_network(network) if "compiled" in levers else network
        self.learner = DiffusionModule(called, self.ddpm.var_scheduler, args.predictor, bf16)
        self.images = self._images(data)
        self.steps = 0

    def _images(self, data: AFHQDataModule) -> Iterator[torch.Tensor]:
        if "cached bytes" in self.levers:
            batches = data.train_batches(self.args.seed, self.device)
            return (batches[step][0] for step in range(10**9))
        decoding = AFHQDataModule(
            data.root,
            data.batch_size,
            num_workers=0,  # workers would decode ahead while other rows have their turn
            max_num_images_per_cat=-1,
            transform=Decode(self.args.image_resolution),
        )
        return (images.to(self.device) for images, _ in get_data_iterator(decoding.train_dataloader()))

    def step(self) -> torch.Tensor:
        """A gradient step; its loss, on the device."""
        with settings_of(self.levers):
            loss = self.learner.get_loss(next(self.images))
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()
        self.steps += 1
        self.ema.update(self.ddpm.network, self.steps)
        if "losses read rarely" not in self.levers:
            loss.item()
        return loss.detach()


def levers_here(args: argparse.Namespace, device: torch.device) -> list[str]:
    """The levers that do something on this device."""
    absent = set() if device.type == "cuda" else {"TF32"}
    if not speed.uses_bf16("auto", device):
        absent.add("bf16")
    if not speed.should_compile(args.compile, device, 10**6):
        absent.add("compiled")
    return [lever for lever in LEVERS if lever not in absent]


def seconds_of(call: Callable[[], object], times: int, device: torch.device) -> float:
    """Seconds that one call takes: the mean of so many in a row, until the device is done with them."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    started = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - started) / times


def chain_seconds(ddpm: DiffusionModule, batch: int, args: argparse.Namespace, device: torch.device) -> float:
    """Seconds of one sampling chain of all T steps, from 20 of its network calls."""
    size = args.image_resolution
    x, t = torch.randn(batch, 3, size, size, device=device), torch.full((batch,), 5, device=device)
    with torch.no_grad():
        seconds_of(lambda: ddpm.predict(x, t, None), 3, device)  # warm-up, and compilation
        return seconds_of(lambda: ddpm.predict(x, t, None), 20, device) * args.num_diffusion_train_timesteps


def forward_flop(args: argparse.Namespace) -> float:
    """Floating-point operations of a forward pass of one image."""
    network, size = build_model(args, 1).network, args.image_resolution
    # The counter knows no formula for the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.randn(1, 3, size, size), torch.zeros(1))
    return counter.get_total_flops()


def measure(args: argparse.Namespace, data: AFHQDataModule, device: torch.device, turns: int, steps: int) -> dict:
    """Speed and memory of each row, and what a run of 100,000 steps with its pictures would take."""
    levers = levers_here(args, device)
    plain = Loop(frozenset(), args, data, device)
    trainer, batches = Trainer(args, data.num_classes, device, Path()), data.train_batches(args.seed, device)
    rows: dict[str, Callable[[], object]] = {"plain": plain.step}
    for count, lever in enumerate(levers, start=1):
        rows[f"+ {lever}"] = Loop(frozenset(levers[:count]), args, data, device).step

    def trainer_step() -> None:
        with settings_of(levers):
            trainer.train_step(*batches[trainer.step])

    rows["train.py"] = trainer_step

    memory: dict[str, float | None] = dict.fromkeys(rows)
    for name, step in rows.items():
        step()  # so that gradients and Adam's moments are there
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        seconds_of(step, 3, device)  # warm-up
        if device.type == "cuda":
            memory[name] = (torch.cuda.max_memory_allocated(device) - before) / 2**30
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in tqdm(range(turns), desc=f"batch {args.batch_size}", unit="turn"):
        for name, step in rows.items():
            seconds[name].append(seconds_of(step, steps, device))

    median = {name: statistics.median(times) for name, times in seconds.items()}
    numbers = itertools.count()
    loading = statistics.median(seconds_of(lambda: batches[next(numbers)], steps, device) for _ in range(turns))
    flop = 3 * forward_flop(args) * args.batch_size  # the backward pass takes twice the forward pass
    table = [
        {
            "row": name,
            "images_per_second": args.batch_size / median[name],
            "times_plain": median["plain"] / median[name],
            "spread": (max(times) - min(times)) / median[name],
            "tflop_per_second": flop / median[name] / 1e12,
            "activations_gib": memory[name],
        }
        for name, times in seconds.items()
    ]
    # The handout's program samples 4 + 1 images in two chains every 200 steps; train.py samples 4 in one every 2000.
    plain.ddpm.eval()
    with settings_of(()):
        pictures = {"plain": 500 * sum(chain_seconds(plain.ddpm, batch, args, device) for batch in (4, 1))}
    with settings_of(levers):
        pictures["train.py"] = 50 * chain_seconds(trainer.sampler, 4, args, device)
    hours = {name: (1e5 * median[name] + pictures[name]) / 3600 for name in pictures}
    return {
        "batch_size": args.batch_size,
        "table": table,
        "share_of_time_on_data": loading / median["train.py"],
        "hours_for_100k_steps_with_pictures": hours,
    }


def show(result: dict, peak_tflops: float | None) -> str:
    """The result as a table in Markdown."""
    lines = [
        f"Batch {result['batch_size']}:",
        "",
        "| | images/s | times plain | spread | TFLOP/s | share of peak | activations, GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["table"]:
        share = f"{row['tflop_per_second'] / peak_tflops:.0%}" if peak_tflops else ""
        memory = "" if row["activations_gib"] is None else f"{row['activations_gib']:.2f}"
        lines.append(
            f"| {row['row']} | {row['images_per_second']:.1f} | {row['times_plain']:.2f} | {row['spread']:.0%} "
            f"| {row['tflop_per_second']:.3f} | {share} | {memory} |"
        )
    hours = result["hours_for_100k_steps_with_pictures"]
    ratio = hours["plain"] / hours["train.py"]
    lines += [
        "",
        f"train.py spends {result['share_of_time_on_data']:.2%} of its time on loading images.",
        f"100,000 steps with pictures: {hours['plain']:.2f} h plain, {hours['train.py']:.2f} h ({ratio:.2f} x)",
    ]
    return "\n".join(lines)


def main() -> None:
    """The program."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--full", action="store_true", help="the lab's network at 64x64 rather than a small one at 32x32")
    add("--batch_size", type=int_range(1), nargs="+", default=[16], metavar="N", help="(default: 16)")
    add("--turns", type=int_range(1), default=5, metavar="N", help="turns of each row (default: 5)")
    add("--steps", type=int_range(1), default=4, metavar="N", help="steps a turn (default: 4)")
    add("--compile", choices=speed.AUTO_ON_OFF, default="auto", help="auto: on GPUs (default: auto)")
    add("--data_root", type=Path, metavar="DIR", help="images to train on (default: faces drawn for the purpose)")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, mps (default: auto)")
    peak = "what the device can do at most, for the share of it"
    add("--peak_tflops", type=float_range(0, 1e6), metavar="X", help=peak)
    add("--json", type=writable_file, metavar="FILE", help="also write all figures to this file")
    given = parser.parse_args()
    with exit_on_user_error(), tempfile.TemporaryDirectory() as folder:
        device = select_device(given.device)
        root = given.data_root or Path(folder) / "afhq"
        if given.data_root:
            check_has_data(root)
        else:
            write_synthetic_set(root, max(100, *given.batch_size))
        results = []
        for batch_size in given.batch_size:
            flags = [*(FULL if given.full else SMALL).split(), "--batch_size", str(batch_size)]
            args = train.parse_arguments([*flags, "--compile", given.compile, "--train_num_steps", "1000000"])
            resolution = args.image_resolution
            data = AFHQDataModule(root, batch_size, max_num_images_per_cat=-1, image_resolution=resolution)
            results.append(measure(args, data, device, given.turns, given.steps))
            print(show(results[-1], given.peak_tflops), end="\n\n", flush=True)
            torch.compiler.reset()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        facts = {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "results": results}
        if given.json:
            given.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
