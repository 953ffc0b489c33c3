"""Training speed of a plain loop, of the same loop with one optimisation after the other, and of train.py.

    python benchmarks/training.py                                    # a small network; CPU or GPU
    python benchmarks/training.py --full --batch_size 16 128         # the lab's network at 64x64; for a GPU
    python benchmarks/training.py --json speed.json

The plain loop decodes the images in every epoch, computes attention without a fused kernel, uses PyTorch's default
Adam, memory format and precision, and reads the loss from the device in every step. Results are medians over the turns.
"""

import itertools
import platform
import tempfile
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import bench
import numpy as np
import torch
from bench_tables import SPEED, markdown, table
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import speed
import train
from cli import exit_on_user_error, float_range, int_range, select_device
from data_folder import check_has_data
from dataset import AFHQDataModule, get_data_iterator, to_tensor
from images import resize
from model import DiffusionModule
from synthetic_faces import write_synthetic_set
from trainer import Trainer, build_model, build_network, update_ema

OPTIMISATIONS = ("cached images", "fused attention", "fused Adam", "channels last", "losses read rarely")
OPTIMISATIONS += ("TF32", "bf16", "compiled")
FULL = "--image_resolution 64"
SMALL = "--image_resolution 32 --ch 32 --ch_mult 1 2 2 --attn 1 --num_res_blocks 1"


@contextmanager
def process_settings(optimisations: Collection[str]) -> Iterator[None]:
    """Attention kernel and precision of float32 products, which are settings of the whole process."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = "TF32" in optimisations
    with nullcontext() if "fused attention" in optimisations else sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.cuda.matmul.allow_tf32 = before


class Loop:
    """A training loop with some of the optimisations."""

    def __init__(self, optimisations: frozenset[str], args: Namespace, data: AFHQDataModule, device: object):
        self.optimisations, self.args, self.device = optimisations, args, device
        torch.manual_seed(args.seed)
        self.model = build_model(args, data.num_classes).to(device)
        self.model.precision = "bf16" if "bf16" in optimisations else "fp32"
        if "channels last" in optimisations:
            speed.place_network(self.model.network, device, self.model.precision)
        self.weights = list(self.model.network.parameters())
        self.averages = [weight.detach().clone() for weight in self.weights]
        if "fused Adam" in optimisations:
            self.optimizer = speed.adam(self.weights, args.learning_rate, device)
        else:
            self.optimizer = torch.optim.Adam(self.weights, lr=args.learning_rate)
        if "compiled" in optimisations:
            speed.compile_network(self.model.network)
        self.images = self._images(data)
        self.steps = 0

    def _images(self, data: AFHQDataModule) -> Iterator[torch.Tensor]:
        if "cached images" in self.optimisations:
            batches = data.train_batches(self.args.seed, self.device)
            return (batches[step][0] for step in itertools.count())

        def decode(image: Image.Image) -> torch.Tensor:
            return to_tensor(np.array(resize(image, self.args.image_resolution))).permute(2, 0, 1)

        # No workers: they would decode while other rows have their turn.
        settings = {"num_workers": 0, "max_num_images_per_cat": -1, "transform": decode}
        decoding = AFHQDataModule(data.root, data.batch_size, **settings)
        return (images.to(self.device) for images, _ in get_data_iterator(decoding.train_dataloader()))

    def step(self) -> torch.Tensor:
        """A gradient step; returns its loss, on the device."""
        with process_settings(self.optimisations):
            loss = self.model.get_loss(next(self.images))
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()
        self.steps += 1
        update_ema(self.averages, self.weights, self.args.ema_decay, self.steps)
        if "losses read rarely" not in self.optimisations:
            loss.item()
        return loss.detach()


def available_optimisations(args: Namespace, device: torch.device) -> list[str]:
    """The optimisations that have an effect on this device."""
    available = {
        "TF32": device.type == "cuda",
        "bf16": speed.select_precision("auto", device) == "bf16",
        "compiled": speed.should_compile(args.compile, device, 10**6),
    }
    return [name for name in OPTIMISATIONS if available.get(name, True)]


def chain_seconds(model: DiffusionModule, batch_size: int, args: Namespace, device: torch.device) -> float:
    """Seconds of a reverse chain of T steps, extrapolated from 20 predictions."""
    size = args.image_resolution
    x, t = torch.randn(batch_size, 3, size, size, device=device), torch.full((batch_size,), 5, device=device)
    with torch.no_grad():
        bench.seconds_per_call(lambda: model.predict(x, t), 3, device)  # warm-up and compilation
        return bench.seconds_per_call(lambda: model.predict(x, t), 20, device) * args.num_diffusion_train_timesteps


def forward_flop(args: Namespace) -> float:
    """Floating-point operations of a forward pass of one image."""
    size = args.image_resolution
    # The counter has no formula for the fused attention of CPUs.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        build_network(args, 1)(torch.zeros(1, 3, size, size), torch.zeros(1))
    return counter.get_total_flops()


def measure(args: Namespace, data: AFHQDataModule, device: torch.device, turns: int, steps: int) -> dict:
    """Speed of each row, and the hours of 100,000 steps with samples."""
    optimisations = available_optimisations(args, device)
    trainer, batches = Trainer(args, data.num_classes, device, Path()), data.train_batches(args.seed, device)
    plain = Loop(frozenset(), args, data, device)
    rows: dict[str, Callable[[], object]] = {"plain": plain.step}
    for count, name in enumerate(optimisations, start=1):
        rows[f"+ {name}"] = Loop(frozenset(optimisations[:count]), args, data, device).step

    def trainer_step() -> None:
        with process_settings(optimisations):
            trainer.train_step(*batches[trainer.step])

    rows["train.py"] = trainer_step

    memory: dict[str, float | None] = dict.fromkeys(rows)
    for name, step in rows.items():
        step()  # gradients and Adam's moments exist from here on
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        bench.seconds_per_call(step, 3, device)  # warm-up
        if device.type == "cuda":
            memory[name] = (torch.cuda.max_memory_allocated(device) - before) / 2**30

    index = itertools.count()
    rows["loading"] = lambda: batches[next(index)]
    seconds = bench.take_turns(rows, turns, steps, device)
    median = bench.medians(seconds)
    del seconds["loading"]
    flop = 3 * forward_flop(args) * args.batch_size  # the backward pass takes twice the forward pass
    # The skeleton samples 4 + 1 images in two chains every 200 steps; train.py samples 4 in one every 2000.
    plain.model.eval()
    with process_settings(()):
        sampling = {"plain": 500 * sum(chain_seconds(plain.model, n, args, device) for n in (4, 1))}
    with process_settings(optimisations):
        sampling["train.py"] = 50 * chain_seconds(trainer.ema, 4, args, device)
    return {
        "batch_size": args.batch_size,
        "table": [
            {
                "row": name,
                "images_per_second": args.batch_size / median[name],
                "times_plain": median["plain"] / median[name],
                "spread": (max(times) - min(times)) / median[name],
                "tflop_per_second": flop / median[name] / 1e12,
                "activations_gib": memory[name],
            }
            for name, times in seconds.items()
        ],
        "share_of_time_on_data": median["loading"] / median["train.py"],
        "hours_for_100k_steps_with_samples": {n: (1e5 * median[n] + sampling[n]) / 3600 for n in sampling},
    }


def to_markdown(result: dict, peak_tflops: float | None = None) -> str:
    """The result as a table."""
    columns = [*SPEED, ("TFLOP/s", "{tflop_per_second:.3f}"), ("share of peak", "{share}")]
    columns.append(("activations, GiB", "{memory}"))
    rows = []
    for row in result["table"]:
        share = f"{row['tflop_per_second'] / peak_tflops:.0%}" if peak_tflops else ""
        memory = "" if row["activations_gib"] is None else f"{row['activations_gib']:.2f}"
        rows.append(row | {"share": share, "memory": memory})
    lines = [f"Batch {result['batch_size']}:\n", markdown(table(rows, columns))]
    hours = result["hours_for_100k_steps_with_samples"]
    lines.append(f"\nShare of train.py's time spent on loading images: {result['share_of_time_on_data']:.2%}")
    lines.append(f"100,000 steps with samples: {hours['plain']:.2f} h plain, {hours['train.py']:.2f} h with train.py\n")
    return "\n".join(lines)


def main() -> None:
    parser = bench.make_parser(__doc__, turns=5)
    add = parser.add_argument
    add("--full", action="store_true", help="the lab's network at 64x64 instead of a small one at 32x32")
    add("--batch_size", type=int_range(1), nargs="+", default=[16], metavar="N", help="one table for each")
    add("--steps", type=int_range(1), default=4, metavar="N", help="steps per turn")
    add("--compile", choices=speed.AUTO_ON_OFF, default="auto", help="auto: on GPUs")
    add("--data_root", type=Path, metavar="DIR", help="images to train on instead of synthetic faces")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, mps; auto: a GPU if there is one")
    peak = "peak of the device, to print the share of it"
    add("--peak_tflops", type=float_range(0, 1e6), metavar="X", help=peak)
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
            print(to_markdown(results[-1], given.peak_tflops), flush=True)
            torch.compiler.reset()
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        machine = {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
        bench.write_json(given.json, machine | {"results": results})


if __name__ == "__main__":
    main()
