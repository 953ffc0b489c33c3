"""Shared by the programs of report/: the path to Task 2's modules, running its programs, tables, the style of figures.

Programs about Task 1 put its folder on the path first. `cli` is the only name of both tasks that is imported at the top
here, and either works.
"""

import asyncio
import csv
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["MPLBACKEND"] = "Agg"  # a notebook exports its own backend, which may be missing here

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

REPORT = Path(__file__).resolve().parent
ROOT = REPORT.parent
TASK1, TASK2 = ROOT / "2d_plot_diffusion_todo", ROOT / "image_diffusion_todo"
sys.path.insert(1, str(TASK2))  # after the folder of the program, or Task 1's

from atomic import atomic_write
from cli import UserError, writable_folder

if TYPE_CHECKING:
    from model import DiffusionModule

# The two parametrizations that are compared.
LOSS_WEIGHT_OF = {"direct": "none", "preconditioned": "min-snr"}
# The settings of --out.
OUT = dict(type=writable_folder, default=REPORT, metavar="DIR", help="folder for figures/ and tables/")

WIDTH = 6.3  # inches: the 16 cm of text on a page
DPI = 175
Content = bytes | plt.Figure | Image.Image | list[dict[str, object]]  # of a file

plt.rc("font", size=8)
plt.rc("axes", titlesize=8)
plt.rc("legend", fontsize=7)
plt.rc(("xtick", "ytick"), labelsize=7)
plt.rc("lines", linewidth=1.2)
plt.rc("grid", alpha=0.3, linewidth=0.5)
plt.rc("svg", hashsalt="ddpm")  # the same drawing gives the same bytes


async def run_program(name: str, *arguments: object, cwd: Path | None = None) -> None:
    """Run one of Task 2's programs; a UserError if it fails. A cancelled one is interrupted as by Ctrl-C, and saves."""
    command = sys.executable, TASK2 / name, *map(str, arguments)
    # In a session of its own: Ctrl-C in a terminal goes to this process alone, which passes it on once.
    settings = dict(cwd=cwd, stdout=asyncio.subprocess.DEVNULL, start_new_session=True)
    process = await asyncio.create_subprocess_exec(*command, **settings)
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        with suppress(ProcessLookupError):  # it has just ended
            process.send_signal(signal.SIGINT)
        await process.wait()
        raise
    if code:
        raise UserError(f"{name} failed with exit code {code}")


async def measure(gt_dir: Path, gen_dir: Path, *flags: object) -> dict[str, Any]:
    """The result of measure_fid.py with pytorch-fid's network, which is kept in a JSON file beside `gen_dir`."""
    result = gen_dir.with_name(f"{gen_dir.name}.json")
    await run_program("fid/measure_fid.py", gt_dir, gen_dir, "--network", "pytorch-fid", *flags, "--json", result)
    return json.loads(result.read_text())


async def sample_and_measure(
    checkpoint: Path, gt_dir: Path, save_dir: Path, sampling: Sequence[object], measuring: Sequence[object]
) -> dict[str, Any]:
    """Complete the samples in `save_dir` and `measure` them, with the flags of the two programs."""
    await run_program("sampling.py", "--ckpt_path", checkpoint, "--save_dir", save_dir, *sampling)
    return await measure(gt_dir, save_dir, *measuring)


def find_eval_images(data_root: Path) -> Path:
    """The folder of the validation images at the size of the model; UserError if these or the data are missing."""
    from data_folder import check_has_data, resolve_root
    from fid.image_sets import find_images

    check_has_data(data_root)
    folder = resolve_root(data_root).resolve() / "eval"
    find_images(folder)
    return folder


def load_model(path: Path, weights: str = "ema") -> "DiffusionModule":
    """The model of a checkpoint, in eval mode on the CPU."""
    from model import DiffusionModule

    ddpm = DiffusionModule(None, None).eval()
    ddpm.load(path, weights)
    return ddpm


def read_table(path: Path, columns: Sequence[str] = ()) -> list[dict[str, str]]:
    """The rows of a CSV file. With `columns`, of a table to be extended: it must have these, or not exist yet."""
    if columns and not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            rows, names = list(table), table.fieldnames
    except (UnicodeDecodeError, csv.Error):
        names = None
    if not names or (columns and names != list(columns)):
        raise UserError(f"{path} is not a table" + f" with the columns {', '.join(columns)}" * bool(columns))
    return rows


class ResultTable:
    """A CSV table that gets a row for each result as soon as it is there, so that a repeated call can resume.

    `key` names the columns of the settings that identify a row, `results` those after them. `order` sorts the rows.
    """

    def __init__(self, path: Path, key: Sequence[str], results: Sequence[str], order: Callable | None = None):
        self.path, self.key, self.columns, self.order = path, key, (*key, *results), order
        self.rows = read_table(path, self.columns)

    def find(self, *settings: object) -> dict[str, str] | None:
        """The row with these settings, if there is one."""
        wanted = [str(value) for value in settings]
        return next((row for row in self.rows if [row[name] for name in self.key] == wanted), None)

    def add(self, *values: object) -> dict[str, str]:
        """Add a row, write the table and print the row."""
        row = dict(zip(self.columns, map(str, values), strict=True))
        self.rows.append(row)
        if self.order:
            self.rows.sort(key=self.order)
        write(self.path, self.rows)
        print(*row.values(), flush=True)
        return row


def write(path: Path, content: Content) -> None:
    """Write bytes, a figure (SVG or PNG, by the suffix), a picture or the rows of a CSV table; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        if isinstance(content, plt.Figure):
            metadata = {"Date": None} if path.suffix == ".svg" else None
            content.savefig(file, format=path.suffix[1:], dpi=DPI, metadata=metadata)
            plt.close(content)
        elif isinstance(content, Image.Image):
            content.save(file, format="PNG")
        elif isinstance(content, list):
            table = csv.DictWriter(text := io.StringIO(), content[0], lineterminator="\n")
            table.writeheader()
            table.writerows(content)
            file.write(text.getvalue().encode())
        else:
            file.write(content)


def label_log_axis(axis: Axis) -> None:
    """Ticks at 1, 2, 5, 10, ... on a logarithmic axis, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_locator(NullLocator())


def draw_strips(strips: dict[str, Image.Image], columns: Sequence[str] = (), note: str = "") -> plt.Figure:
    """Pictures of one size below each other, enlarged by a whole factor, with their names at the left.

    Above are the labels `columns`, evenly spaced over the width; the note is below.
    """
    size = np.array(next(iter(strips.values())).size)
    width, height = size * max(1, round(WIDTH * DPI / size[0]))
    inches = 0.14 + 0.06 * max(map(len, strips)), 0.2 * bool(columns), 0.2 * bool(note)
    left, top, bottom = np.round(np.array(inches) * DPI)
    total = np.array([left + width, top + height * len(strips) + bottom])
    fig = plt.figure(figsize=total / DPI, dpi=DPI)
    for i, (name, strip) in enumerate(strips.items()):
        corner = np.array([left, bottom + height * (len(strips) - 1 - i)])
        ax = fig.add_axes([*corner / total, width / total[0], height / total[1]], frame_on=False)
        ax.imshow(strip, interpolation="nearest")
        centres = (np.arange(len(columns)) + 0.5) * size[0] / max(1, len(columns)) - 0.5
        ax.set_xticks(*(([], []) if i else (centres, columns)))
        ax.set_yticks([size[1] / 2], [name])
        ax.tick_params(length=0, labeltop=True, labelbottom=False)
    fig.text(left / total[0], 0.07 * DPI / total[1], note)
    return fig
