"""What the README says can be done, and what it shows, is there."""

import csv
import json
import re
import shlex
from collections import Counter
from itertools import chain

import numpy as np
import pytest

from scheduler import MODES, PREDICTORS

INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
COMMAND = re.compile(r"(?:\w+=\S+ )*(?:python|torchrun) .*\.py\b.*")
MAKE = re.compile(r"make ([a-z-]+)")
OF_TORCHRUN = {"--nproc_per_node"}


@pytest.fixture(scope="module")
def root(request):
    return request.config.rootpath


@pytest.fixture(scope="module")
def text(root):
    return (root / "README.md").read_text(encoding="utf-8")


def commands(root, text):
    """(folder, command) of everything to be typed; the folder is None where no `cd` came before."""
    found = [(None, command) for command in re.findall(r"`([^`\n]+)`", text)]
    for block in INDENTED.findall(text):
        place = None
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|;", re.sub(r"  #.*", "", line)):
                words = command.split()
                if words[:1] == ["cd"]:
                    place = root if words[1] == ".." else (place or root) / words[1]
                found.append((place, command.strip()))
    return found


def program_of(root, place, name):
    """The file that a command runs, from its folder, or else from the top or inside a task's folder."""
    places = [place] if place else [root, root / "image_diffusion_todo", root / "2d_plot_diffusion_todo"]
    paths = [path / name for path in places if (path / name).is_file()]
    assert paths, f"the README runs {name}, which is not there"
    return paths[0]


def known_flags(path, root, program):
    """The flags of a program."""
    source = path.read_text(encoding="utf-8")
    if "from chamferdist" in source:  # a program of Task 1, whose modules have the names of this task's
        return set(re.findall(r'add\("(--\w+)"', source))
    said = program("/".join(["..", *path.relative_to(root).parts]), "--help").stdout
    return set(re.findall(r"^ +(?:-\w, )?(--\w+)", said, re.MULTILINE))


def test_every_command_names_a_program_and_flags_that_it_has(root, text, program):
    wanted = {}
    for place, command in commands(root, text):
        if COMMAND.fullmatch(command):
            words = [word.strip("[]") for word in shlex.split(command.replace("...", " "))]
            path = program_of(root, place, next(word for word in words if word.endswith(".py")))
            flags = {word for word in words if word.startswith("--")} - OF_TORCHRUN
            wanted[path] = wanted.get(path, set()) | flags
    assert len(wanted) >= 13
    known = {path: known_flags(path, root, program) for path in wanted}
    for path, flags in wanted.items():
        assert flags <= known[path], (path.name, flags - known[path])
    alone = {word for _, command in commands(root, text) for word in re.findall(r"^--\w+", command)}
    assert len(alone) > 10 and alone <= set.union(*known.values()), alone - set.union(*known.values())


def test_every_target_of_make_is_there(root, text):
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    wanted = {found[1] for _, command in commands(root, text) if (found := MAKE.match(command))}
    assert len(wanted) >= 4 and wanted <= targets, wanted - targets


def test_every_picture_and_file_that_it_links_to_is_there(root, text):
    linked = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [name for name in linked if "://" not in name]
    assert len(local) > 10
    for name in local:
        assert (root / name).is_file(), name


def table_rows(text, first):
    """The cells after the first, without marks of emphasis, of each row of a table that begins with `first`."""
    lines = [line.replace("*", "").strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line] for line in lines]
    return [cells[1:] for cells in rows if cells[0] == first]


def read_csv(root, name):
    with (root / "report/tables" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_of_predictors_shows_the_study(root, text):
    """The mean over seeds, by the whole chain and by the solver; the preconditioned predictors are one column."""
    study = [row for row in read_csv(root, "study.csv") if row["precision"] == "bf16"]
    budget = Counter(row["steps"] for row in study).most_common(1)[0][0]
    for mode in MODES:
        columns = [("direct", [name]) for name in PREDICTORS] + [("preconditioned", PREDICTORS)]
        expected = []
        for parametrization, predictors in columns:
            rows = [
                row
                for row in study
                if (row["mode"], row["parametrization"], row["steps"]) == (mode, parametrization, budget)
                and row["predictor"] in predictors
            ]
            found = {name: [float(row["fid768"]) for row in rows if row["sampler"] == name] for name in ("ddpm", "dpm")}
            expected.append(" / ".join(f"{np.mean(values):.2f}" if values else "–" for values in found.values()))
        assert expected in table_rows(text, mode), expected


def test_the_table_of_step_counts_shows_what_was_measured(root, text):
    measured = {}
    for row in read_csv(root, "cats_cpu_sampling.csv"):
        if row["images"] == "500":
            measured[row["sample_method"], row["steps"]] = f"{float(row['distance']):.2f}"
    said = " ".join(text.split())
    real, noise = (measured.pop((name, "0")) for name in ("real images", "plain noise"))
    assert f"drawn at random, have {real} (the floor), and 500 images of plain noise {noise}" in said
    many = [row["distance"] for row in read_csv(root, "cats_cpu_sampling.csv") if row["images"] == "2000"]
    floor, best = (f"{float(distance):.2f}" for distance in many if float(distance) < 1)
    assert f"--num_samples 2000`) have {best}, and 2000 real cats {floor}" in said
    (counts,) = table_rows(text, "network calls an image")
    shown = {}
    for method in ("dpm", "ddim", "ddpm"):
        (cells,) = table_rows(text, f"`--sample_method {method}`")
        shown |= {(method, n.replace(",", "")): cell for n, cell in zip(counts, cells, strict=True) if cell}
    assert shown == measured


def test_the_table_of_levers_shows_what_was_measured(root, text):
    results = []
    for name in ("speed_cpu", "speed_cpu_full"):
        (result,) = json.loads((root / f"report/tables/{name}.json").read_text())["results"]
        results.append(result)
        hours = result["hours_for_100k_steps_with_pictures"]
        digits = 1 if hours["plain"] < 10 else 0
        assert f"{hours['train.py']:.{digits}f} hours instead of {hours['plain']:.{digits}f}" in text
        assert f"{1 / result['table'][-1]['times_plain']:.2f}" in text
    assert f"Loading the images is {results[0]['share_of_time_on_data']:.2%} of" in text
    for rows in zip(*(result["table"] for result in results), strict=True):
        cells = [
            (f"{row['images_per_second']:.3g}", f"{row['times_plain']:.2f}", f"{row['spread']:.0%}") for row in rows
        ]
        assert [*chain(*cells)] in table_rows(text, rows[0]["row"])


def test_what_is_said_of_bf16_was_measured(root, text):
    model = {"mode": "cosine", "predictor": "noise", "parametrization": "preconditioned", "steps": "2000"}
    shown = {
        (row["precision"], row["seed"]): f"{float(row['fid768']):.2f}"
        for row in read_csv(root, "study.csv")
        if model.items() <= row.items() and row["sampler"] == "dpm"
    }
    said = (
        f"FID-768 {shown['bf16', '63']} with seed 63 and {shown['bf16', '64']} with seed 64, "
        f"in float32 {shown['fp32', '63']} and {shown['fp32', '64']}"
    )
    assert said in " ".join(text.split())


def test_the_table_of_memory_shows_what_was_measured(root, text):
    rows = []
    for name in ("memory_cpu", "memory_cpu_large"):
        rows += json.loads((root / f"report/tables/{name}.json").read_text())
    assert len(rows) == 5
    for row in rows:
        size = f"{row['image_resolution']}x{row['image_resolution']}"
        figures = [f"{row[name]:.2f}" for name in ("kept_gib", "twice_gib", "times_as_long")]
        assert [str(row["batch_size"]), *figures] in table_rows(text, size)


def test_the_table_of_the_distance_shows_what_was_measured(root, text):
    found = json.loads((root / "report/tables/fid_cpu.json").read_text())
    for row in found["rows"]:
        seconds = [f"{row[program]['median']:.3g}" for program in ("pytorch_fid", "ours")]
        expected = [*seconds, f"{row['speedup']:.3g}", f"{row['relative_difference']:.1e}"]
        assert expected in table_rows(text, row["what"])
