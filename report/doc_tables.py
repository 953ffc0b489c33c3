"""Fill in the tables of the READMEs, from report/tables/ and from the pages of the report.

    python report/doc_tables.py            # or: make report

A table stands between `<!-- table NAME -->` and `<!-- end -->`, where NAME is a function of this file.
"""

import json
import re
import sys
from collections.abc import Iterable
from itertools import groupby
from math import isnan
from statistics import mean

import build
from cli import ArgumentParser, UserError, exit_on_user_error
from common import REPORT, ROOT, read_table, write

sys.path.append(str(ROOT / "benchmarks"))  # last: its fid.py must not hide the package fid

from bench_tables import FID, MEMORY, PATCHES, SPEED, markdown, table, with_speedups

DOCUMENTS = [ROOT / name for name in ("README.md", "report/README.md", "benchmarks/README.md")]
# The figures and tables of report.typ that each program makes.
MADE_BY = {
    "../2d_plot_diffusion_todo/ddpm_tutorial.py": "q-sample roll",
    "swiss_roll_floor.py": "floor",
    "swiss_roll_choices.py": "ablation",
    "figures.py": "schedules trajectories mean-colour samples settings best-samples",
    "study.py": "study",
    "explain_predictors.py": "why errors",
    "sampling_steps.py": "steps samplers",
    "training_curve.py": "curve",
    "neighbours.py": "neighbours",
}
LAB_RUNS = [("linear", "noise"), ("linear", "x0"), ("linear", "mean"), ("quad", "noise"), ("cosine", "noise")]
Rows = list[list[str]]


def read(name: str) -> list[dict[str, str]]:
    """The rows of report/tables/NAME.csv."""
    return read_table(REPORT / f"tables/{name}.csv")


def load(name: str) -> dict | list:
    """What report/tables/NAME.json holds."""
    return json.loads((REPORT / f"tables/{name}.json").read_text(encoding="utf-8"))


def study() -> list[list[float | None]]:
    """FID-768 of each of the lab's runs as in the lab, clipped, and preconditioned; NaN where samples diverged."""
    rows = read("study")
    names = "mode", "predictor", "parametrization", "clip_x0", "sampling", "images"
    found = {tuple(row[name] for name in names): float(row["fid768"]) for row in rows}
    forms = [("direct", "False"), ("direct", "True"), ("preconditioned", "True")]
    sampling = rows[0]["sampling"], rows[0]["images"]
    return [[found.get((*run, *form, *sampling)) for form in forms] for run in LAB_RUNS]


def extremes(values: Iterable[float | None]) -> str:
    """The smallest and the largest of the numbers."""
    numbers = [value for value in values if value is not None and not isnan(value)]
    return f"{min(numbers):.2f} to {max(numbers):.2f}"


def results() -> Rows:
    """The results in short, with their limits."""
    seeds = [float(row["chamfer"]) for row in read("swiss_roll_seeds")]
    best = {row["key"]: row["value"] for row in read("best")}
    bounds = {row["sample_method"]: row for row in read("cats64_sampling") if row["images"] == best["samples"]}
    if missing := {"real images", "plain noise"} - bounds.keys():
        raise UserError(
            f"tables/cats64_sampling.csv has no {min(missing)} for {best['samples']} samples, as in best.csv"
        )
    real, noise = (float(bounds[name]["distance"]) for name in ("real images", "plain noise"))
    last = f" to t = {best['last_timestep']}" if "last_timestep" in best else ""
    lab, clipped, preconditioned = map(extremes, zip(*study(), strict=True))
    small, full = (1 / load(name)["results"][0]["table"][-1]["times_plain"] for name in ("speed_cpu", "speed_cpu_full"))
    return [
        ["measurement", "result", "for comparison", "limits"],
        [
            "Swiss roll, Chamfer distance",
            f"{mean(seeds):.2f} (at most {max(seeds):.2f})",
            f"{load('swiss_roll')['floor']:.2f} between target points; full marks below 20",
            f"{len(seeds)} seeds, the lab's hyper-parameters",
        ],
        [
            f"Cats at 64x64, {best['name']}",
            f"{float(best['distance']):.2f}",
            f"{real:.2f} for real cats, {noise:.2f} for noise",
            f"{best['samples']} samples, {best['num_inference_steps']} {best['sample_method'].upper()} steps{last}; "
            f"{int(best['steps']):,} training steps, {int(best['weights']):,} weights, cats only, CPU",
        ],
        [
            "The lab's five runs, scaled down, FID-768",
            f"{preconditioned} preconditioned",
            f"{lab} as in the lab, where the mean diverges; {clipped} clipped",
            f"64x64, {int(read('study')[0]['steps']):,} steps, one seed, CPU",
        ],
        [
            "Time of a training step",
            f"{small:.2f} (small network), {full:.2f} (the lab's)",
            "1 for a plain loop",
            "two CPU cores, bfloat16; no GPU measured",
        ],
        ["FID on the lab's scale, 64x64, 3 classes", "not measured", "full marks below 15", "needs a GPU"],
    ]


def ablation() -> Rows:
    """What each choice of Task 1 contributes."""
    rows = [["choice", "Chamfer distance, mean", "range", "seeds"]]
    for variant, group in groupby(read("swiss_roll_choices"), lambda row: row["variant"]):
        values = [float(row["chamfer"]) for row in group]
        rows.append([variant, f"{mean(values):.2f}", f"{min(values):.2f} to {max(values):.2f}", str(len(values))])
    return rows


def predictors() -> Rows:
    """FID-768 of the lab's five runs, as in the lab, clipped, and preconditioned."""
    rows = [["schedule", "predictor", "baseline", "baseline, clipped", "preconditioned, min-SNR, clipped"]]
    for run, values in zip(LAB_RUNS, study(), strict=True):
        cells = ["–" if value is None else "diverges" if isnan(value) else f"{value:.2f}" for value in values]
        rows.append([*run, *cells])
    return rows


def samplers() -> Rows:
    """FID-768 and KID by sampler and number of network evaluations."""
    clipped = {"True": "yes", "False": "no", "": ""}
    rows = [["sampler", "NFE", "images", "x_0 clipped", "last t", "FID-768", "KID"]]
    for row in read("cats64_sampling"):
        what = row["sample_method"], row["steps"], row["images"], clipped[row["clip_x0"]], row["last_timestep"]
        rows.append([*what, f"{float(row['distance']):.3f}", row["kid"]])
    return rows


def pages() -> Rows:
    """What each program contributes to the report, and where."""
    places = {place["label"]: place for place in json.loads(build.build(query="<places>"))}
    if unknown := places.keys() - set(" ".join(MADE_BY.values()).split()):
        raise UserError(f"MADE_BY names no program for {', '.join(unknown)} of report.typ")
    rows = [["program", "in the report"]]
    for program, labels in MADE_BY.items():
        found = [f"{places[label]['name']} (page {places[label]['page']})" for label in labels.split()]
        rows.append([f"`{program}`", ", ".join(found)])
    return rows


def speed() -> Rows:
    """The time of a training step, optimisation by optimisation."""
    rows = []
    for network, name in (("small", "speed_cpu"), ("the lab's", "speed_cpu_full")):
        columns = [(f"{network}: {header}", cell) for header, cell in SPEED[1:]]
        rows.append(table(load(name)["results"][0]["table"], [SPEED[0], *columns]))
    return [[*small, *full[1:]] for small, full in zip(*rows, strict=True)]


def cost() -> Rows:
    """Hours of 100,000 steps with their samples, extrapolated."""
    rows = [["network", "batch", "plain loop, hours", "`train.py`, hours"]]
    for network, name in (("small, 32x32", "speed_cpu"), ("the lab's, 64x64", "speed_cpu_full")):
        result = load(name)["results"][0]
        hours = result["hours_for_100k_steps_with_samples"]
        rows.append([network, str(result["batch_size"]), f"{hours['plain']:.3g}", f"{hours['train.py']:.3g}"])
    return rows


def memory() -> Rows:
    """Peak memory of a training step."""
    return table(load("memory_cpu") + load("memory_cpu_large"), MEMORY)


def patches() -> Rows:
    """What patches of pixels save."""
    return table(with_speedups(load("patches_cpu")), PATCHES)


def fid() -> Rows:
    """Our FID program against pytorch-fid."""
    return table(load("fid_cpu")["rows"], FID)


def filled(text: str) -> str:
    """A document with its tables generated."""
    return re.sub(
        r"(<!-- table (\w+) -->)\n.*?(<!-- end -->)",
        lambda match: "\n".join([match[1], markdown(globals()[match[2]]()), match[3]]),
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    ArgumentParser(description=__doc__).parse_args()
    with exit_on_user_error():
        for path in DOCUMENTS:
            write(path, filled(path.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main()
