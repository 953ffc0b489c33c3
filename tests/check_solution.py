"""Check anybody's solution of the lab: which functions are wrong, at which t, and by which mistake.

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
import sys
import tempfile
import textwrap
import time
import zipfile
from dataclasses import asdict
from pathlib import Path, PurePath

from solution_check.process import Row, run_tasks

SUFFIXES = {".py", ".json", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".txt", ".csv"}  # what is copied
MAX_BYTES, MAX_TOTAL = 1_000_000, 20_000_000  # of one file, and of what is unpacked
SKIPPED = {"data", "results", "samples", "site-packages", "__MACOSX", "__pycache__"}
FILES = {1: ("ddpm.py",), 2: ("scheduler.py", "model.py")}  # that tell a task's folder
NAMES = {1: "2d_plot_diffusion_todo", 2: "image_diffusion_todo"}


class NothingToCheck(Exception):
    """There is no solution at a place."""


def copy_sources(source: Path, target: Path) -> None:
    """Copy the source files of a folder or a zip; links, hidden and large files are left out."""
    try:
        if source.is_dir():
            for file in source.rglob("*"):
                path = file.relative_to(source)
                if file.is_file() and not file.is_symlink() and _is_source(path, file.stat().st_size):
                    (target / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target / path)
            return
        with zipfile.ZipFile(source) as archive:
            total = 0
            for info in archive.infolist():
                info.filename = info.filename.replace("\\", "/")  # as some programs on Windows write it
                if _is_source(PurePath(info.filename), info.file_size):
                    total += info.file_size
                    if total <= MAX_TOTAL:
                        archive.extract(info, target)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, ValueError) as error:
        raise NothingToCheck(f"{source} cannot be read: {error}") from None


def _is_source(path: PurePath, size: int) -> bool:
    is_skipped = any(name in SKIPPED or name.startswith(".") for name in path.parts)  # ".." too
    return path.suffix in SUFFIXES and size <= MAX_BYTES and not is_skipped


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


def check_many(place: Path, target: Path, limit: float, train: bool) -> int:
    """Check every folder and zip in `place`; the CSV grows with each. Returns the exit code."""
    records = []
    for each in sorted(place.iterdir()):
        if each.name.startswith(".") or not (each.is_dir() or each.suffix.lower() == ".zip"):
            continue
        record = {"solution": each.name, "held": 0, "checks": 0}
        try:
            rows = check_solution(each, limit, train)
        except NothingToCheck as error:
            record["mistakes"] = str(error)
        else:
            record["held"], record["checks"] = totals(rows)
            mistakes = dict.fromkeys(f"{row.function}: {d['name'] or 'unknown'}" for row in rows for d in row.details)
            record |= {"mistakes": "; ".join(mistakes)} | {row.key: row.verdict for row in rows}
        records.append(record)
        columns = dict.fromkeys(name for record in records for name in record)
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(records)
        print(f"{each.name}: {record['held']} of {record['checks']} checks hold", flush=True)
    if not records:
        raise NothingToCheck(f"{place} holds no folder and no zip")
    return int(any(record["held"] != record["checks"] or not record["checks"] for record in records))


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
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
                raise NothingToCheck(f"{args.many} is not a folder")
            return check_many(args.many, args.csv, args.limit, args.train)
        rows = check_solution(args.place, args.limit, args.train)
        if args.json:
            held, checks = totals(rows)
            result = {"held": held, "checks": checks, "rows": [asdict(row) for row in rows]}
            args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    except (NothingToCheck, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"{table(rows)}, in {time.perf_counter() - start:.0f} s")
    return int(any(row.verdict != "right" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
