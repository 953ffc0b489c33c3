"""Check a solution of the lab, anybody's: which function is wrong, at which t, and which mistake it is.

    python tests/check_solution.py DIR                  DIR holds one or both tasks, under any name; or a zip of them
    python tests/check_solution.py --many DIR           every folder and zip in DIR, a row each in solutions.csv

This runs the code that it checks, with your rights: check only what you would run yourself. It runs a copy in another
process, on the CPU, and writes nothing into DIR. The network is replaced, so that only the formulas are judged.
Exit code: 0 all checks hold, 1 some do not, 2 nothing to check.
"""

import argparse
import csv
import json
import shutil
import stat
import sys
import tempfile
import textwrap
import time
import zipfile
from pathlib import Path, PurePosixPath

from solution_check.process import Row, run_tasks

SUFFIXES = {".py", ".json", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".txt", ".csv"}  # what is copied
MAX_BYTES, MAX_TOTAL, MAX_FILES = 1_000_000, 20_000_000, 2000
SKIPPED = {"data", "results", "samples", "site-packages", "__MACOSX", "__pycache__"}
FILES = {1: ("ddpm.py",), 2: ("scheduler.py", "model.py")}  # that tell a task's folder
NAMES = {1: "2d_plot_diffusion_todo", 2: "image_diffusion_todo"}


class NothingToCheck(Exception):
    """There is no solution at a place."""


def copy_sources(source: Path, target: Path) -> None:
    """Copy the source files of a folder or a zip. Links, large files and names outside the zip are left out."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=_not_source, dirs_exist_ok=True)
        return
    try:
        with zipfile.ZipFile(source) as archive:
            total = 0
            for info in archive.infolist()[:MAX_FILES]:
                place = PurePosixPath(info.filename)
                is_link = stat.S_ISLNK(info.external_attr >> 16)
                unsafe = place.is_absolute() or ".." in place.parts or "\\" in info.filename or ":" in info.filename
                total += info.file_size
                if unsafe or is_link or info.is_dir() or place.suffix not in SUFFIXES or SKIPPED & {*place.parts}:
                    continue
                if info.file_size > MAX_BYTES or total > MAX_TOTAL:
                    continue
                (target / place).parent.mkdir(parents=True, exist_ok=True)
                (target / place).write_bytes(archive.read(info))
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        raise NothingToCheck(f"{source} cannot be unpacked: {error}") from None


def _not_source(folder: str, names: list[str]) -> set[str]:
    def is_source(path: Path) -> bool:
        if path.is_symlink() or path.name in SKIPPED or path.name.startswith("."):
            return False
        return path.is_dir() or (path.suffix in SUFFIXES and path.is_file() and path.stat().st_size <= MAX_BYTES)

    return {name for name in names if not is_source(Path(folder, name))}


def find_tasks(root: Path) -> dict[int, Path]:
    """The folder of each task in `root` or below: first the one named as in the handout, then the highest."""
    found = {}
    for task, files in FILES.items():
        folders = {file.parent for name in files for file in root.rglob(name)}
        if task == 2:
            folders -= {file.parent for file in root.rglob("ddpm.py")}
        if folders:
            found[task] = min(folders, key=lambda f: (f.name != NAMES[task], len(f.parts), str(f)))
    return found


def check_solution(place: Path, limit: float = 10.0, train: bool = False) -> list[Row]:
    """The rows of a folder or zip.

    Raises:
        NothingToCheck: where neither task is there.
    """
    if not place.exists():
        raise NothingToCheck(f"{place} does not exist")
    with tempfile.TemporaryDirectory(prefix="check-") as temporary:
        root = Path(temporary).resolve() / "solution"
        root.mkdir()
        copy_sources(place, root)
        tasks = find_tasks(root)
        if not tasks:
            raise NothingToCheck(f"{place} holds neither ddpm.py (Task 1) nor scheduler.py or model.py (Task 2)")
        return run_tasks(tasks, limit, train)


def totals(rows: list[Row]) -> tuple[int, int]:
    """How many checks hold, of how many."""
    return sum(row.held for row in rows), sum(row.checks for row in rows)


def table(rows: list[Row]) -> str:
    """The rows for reading, with the likely mistake below what is wrong."""
    lines = ["Task  TODO  Function            Verdict          Checks"]
    for row in rows:
        lines.append(f"{row.task:<6}{row.todo:<6}{row.function:<20}{row.verdict:<17}{row.held} of {row.checks}")
        for mistake in dict.fromkeys(detail["mistake"] for detail in row.details):
            lines += [f"      {d['aspect']}: {d['difference']}" for d in row.details if d["mistake"] == mistake]
            lines += textwrap.wrap(mistake, 108, initial_indent="      -> ", subsequent_indent="         ")
        if row.note:
            lines.append(f"      {row.note}")
    held, checks = totals(rows)
    return "\n".join([*lines, f"{held} of {checks} checks hold"])


def write_many(place: Path, target: Path, limit: float, train: bool) -> int:
    """Check every folder and zip in `place` and write the CSV; the exit code."""
    records, functions = [], {}
    for each in sorted(place.iterdir()):
        if each.name.startswith(".") or not (each.is_dir() or each.suffix.lower() == ".zip"):
            continue
        try:
            rows = check_solution(each, limit, train)
        except NothingToCheck as error:
            records.append({"solution": each.name, "held": 0, "checks": 0, "mistakes": str(error)})
        else:
            held, checks = totals(rows)
            mistakes = dict.fromkeys(f"{row.function}: {d['name'] or 'unknown'}" for row in rows for d in row.details)
            records.append({"solution": each.name, "held": held, "checks": checks, "mistakes": "; ".join(mistakes)})
            records[-1] |= {row.key: row.verdict for row in rows}
            functions |= {row.key: None for row in rows}
        print(f"{each.name}: {records[-1]['held']} of {records[-1]['checks']} checks hold", flush=True)
    if not records:
        raise NothingToCheck(f"{place} holds no folder and no zip")
    with target.open("w", newline="", encoding="utf-8") as file:
        known = ["solution", "held", "checks", *functions, "mistakes"]
        writer = csv.DictWriter(file, known, restval="")
        writer.writeheader()
        writer.writerows(records)
    return int(any(record["held"] != record["checks"] or not record["checks"] for record in records))


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", nargs="?", type=Path, metavar="DIR", help="a folder or zip with a solution")
    parser.add_argument("--many", type=Path, metavar="DIR", help="check every folder and zip in DIR instead")
    parser.add_argument("--csv", type=Path, default=Path("solutions.csv"), metavar="FILE", help="written by --many")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    parser.add_argument("--limit", type=float, default=10.0, metavar="SECONDS", help="for each check (default: 10)")
    parser.add_argument("--train", action="store_true", help="also train Task 1 as the lab does (a minute)")
    args = parser.parse_args(arguments)
    if (args.place is None) == (args.many is None):
        parser.error("give either DIR or --many DIR")
    print("This runs the code that it checks, with your rights.", file=sys.stderr)
    start = time.perf_counter()
    try:
        if args.many:
            if not args.many.is_dir():
                raise NothingToCheck(f"{args.many} is no folder")
            return write_many(args.many, args.csv, args.limit, args.train)
        rows = check_solution(args.place, args.limit, args.train)
        if args.json:
            held, checks = totals(rows)
            result = {"held": held, "checks": checks, "rows": [row.as_dict() for row in rows]}
            args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except (NothingToCheck, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"{table(rows)}, in {time.perf_counter() - start:.0f} s")
    return int(any(row.verdict != "right" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
