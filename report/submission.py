"""Make or check the submission: {ID}_lab1.zip with report.pdf and the two task folders.

    python report/submission.py --id 412551014
    python report/submission.py --check 412551014_lab1.zip

All files must be source: weights, data and pictures are rejected, whatever the file is called. Left out are data/,
results/, samples/, venv/, caches, hidden files and the weights that come with the lab's skeleton. The programs of a new
zip are run once, in a temporary folder, before it replaces an older one. --check lists every fault of a zip made by
hand.
"""

import io
import os
import re
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import common
from cli import ArgumentParser, UserError, exit_on_user_error, one_line, writable_folder
from images import is_junk

REPORT, TASK1, TASK2 = "report.pdf", "2d_plot_diffusion_todo", "image_diffusion_todo"
FILES = {
    TASK1: "dataset.py chamferdist.py network.py ddpm.py ddpm_tutorial.py",
    TASK2: "dataset.py scheduler.py model.py module.py network.py train.py sampling.py fid/measure_fid.py",
}
REQUIRED = [REPORT, *(f"{folder}/{file}" for folder, files in FILES.items() for file in files.split())]
GENERATED = ("data", "results", "samples", "venv", "env")  # at the top of a task folder
OF_THE_LAB = ("fid/afhq_inception_v3.ckpt", "tests/expected_outputs.pt")  # in a task folder
SUFFIXES = (".py", ".md", ".txt", ".ipynb", ".json", ".toml", ".yaml", ".yml", ".cfg", ".sh")
NAMES = ("LICENSE", "Makefile")  # without a suffix
MAX_SOURCE, MAX_REPORT, MAX_FILES = 2**20, 50 * 2**20, 300
UNFINISHED = re.compile(r"NotImplementedError\([\"']TODO")  # finished code may keep the skeleton's banners

TINY = "--image_resolution 8 --ch 32 --ch_mult 1 --attn --num_res_blocks 1 --num_diffusion_train_timesteps 4"
SHORT = "--batch_size 2 --train_num_steps 2 --log_interval 2 --device cpu"
CHECKPOINT = "results/predictor_noise/beta_linear/*/last.ckpt"  # the star stands for the one name that is there
SMOKE = (  # folder, command, and a file that it must write
    (TASK1, "ddpm_tutorial.py --num_iterations 20 --device cpu", "results/swiss_roll_samples.png"),
    (TASK2, "dataset.py --data_root data/tiny --synthetic 2 --image_resolution 8", "data/tiny/eval/cat_cat_00000.png"),
    (TASK2, f"train.py --data_root data/tiny {TINY} {SHORT}", CHECKPOINT),
    (TASK2, f"sampling.py --ckpt_path {CHECKPOINT} --save_dir samples --num_samples 2 --device cpu", "samples/1.png"),
    (TASK2, "fid/measure_fid.py --help", "fid/measure_fid.py"),  # measuring needs the weights of Inception
)
SMOKE_SECONDS = 600  # for each command


class Member(NamedTuple):
    """An entry of a zip, or of a folder to be zipped; its size in bytes. Links and devices have is_file False."""

    name: str
    is_file: bool
    size: int
    read: Callable[[], bytes]


def folder_members(folder: Path) -> Iterator[Member]:
    """What is in a task folder, without what is left out."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    for path in folder.rglob("*"):
        name = path.relative_to(folder.parent).as_posix()
        status = path.lstat()
        if not left_out(name) and not stat.S_ISDIR(status.st_mode):
            yield Member(name, stat.S_ISREG(status.st_mode), status.st_size, path.read_bytes)


def zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    """What is in a zip. Nothing is unpacked, and a member is read only up to the size that it claims."""

    def read(info: zipfile.ZipInfo) -> bytes:
        try:
            with archive.open(info) as file:
                return file.read(info.file_size)
        except Exception as error:  # damaged bytes make zipfile raise many kinds
            raise UserError(f"cannot be read: {error}") from None

    for info in archive.infolist():
        if not info.is_dir():
            is_file = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
            yield Member(info.filename, is_file, info.file_size, lambda info=info: read(info))


def left_out(name: str) -> str | None:
    """The part of a path that a program, an editor, a system or the lab made; None if there is none."""
    parts = name.split("/")
    if "/".join(parts[1:]) in OF_THE_LAB:
        return name
    for i, part in enumerate(parts):
        if part in (".", ".."):
            break
        generated = part.lower() in (GENERATED if i == 1 else ()) or part == "__pycache__"
        if generated or is_junk(part) or part.endswith("~"):
            return "/".join(parts[: i + 1])
    return None


def check(members: list[Member]) -> tuple[dict[str, bytes], dict[str, str]]:
    """The contents of the files, and what is wrong with the others, both by name."""
    if len(members) > MAX_FILES:
        ((place, _),) = Counter("/".join(member.name.split("/")[:2]) for member in members).most_common(1)
        return {}, {place: f"holds most of {len(members)} files, more than {MAX_FILES} in all"}
    if wrappers := {name.split("/")[0] for name, *_ in members if name.partition("/")[2] in REQUIRED[1:]}:
        return {}, {name: "is an extra top-level folder: zip its contents instead" for name in wrappers}
    contents, faults = {}, {}
    for member in members:
        try:
            if part := left_out(member.name):
                faults[part] = "does not belong in a submission: remove it"
                continue
            check_place(member)
            contents[member.name] = read_source(member)
        except UserError as error:
            faults[member.name] = str(error)
    missing = [name for name in REQUIRED if name not in contents and name not in faults]
    return contents, faults | {name: f"is missing{': run make report' * (name == REPORT)}" for name in missing}


def check_place(member: Member) -> None:
    """Reject paths at which a submission has nothing, or something else."""
    name, parts = member.name, member.name.split("/")
    if {"", ".", ".."} & set(parts) or re.search(r"[\\:]", name) or not name.isprintable():
        raise UserError("is a path outside the zip, or not portable")
    if parts[0] not in (REPORT, *FILES):
        raise UserError(f"does not belong there: a zip holds {REPORT}, {TASK1}/ and {TASK2}/")
    if not member.is_file:
        raise UserError("is a link or a device: put the file itself there")


def read_source(member: Member) -> bytes:
    """The content of a source file or of the report; anything else is refused."""
    path, is_report = PurePosixPath(member.name), member.name == REPORT
    if not is_report and path.suffix.lower() not in SUFFIXES and path.name not in NAMES:
        raise UserError(f"is not a source file ({' '.join(SUFFIXES)}): move weights, data and pictures elsewhere")
    if member.size > (limit := MAX_REPORT if is_report else MAX_SOURCE):
        raise UserError(f"has {member.size:,} bytes, more than {limit:,}")
    content = member.read()
    if is_report:
        if not content.startswith(b"%PDF-") or b"%%EOF" not in content[-1024:]:
            raise UserError("is not a PDF, or is truncated: run make report")
        return content
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError("is not UTF-8 text, whatever its name says: move weights and data elsewhere")
    if path.suffix == ".py":
        try:
            compile(content, path.name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"is not valid Python: {error}") from None
    if path.suffix in (".py", ".ipynb") and (match := UNFINISHED.search(text)):
        raise UserError(f"has a TODO of the skeleton left in line {text.count(chr(10), 0, match.start()) + 1}")
    return content


def zipped(contents: dict[str, bytes]) -> bytes:
    """A zip whose bytes follow from the contents alone: sorted, of one date, and stored (releases of zlib differ)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(contents):
            info = zipfile.ZipInfo(name)  # of 1980-01-01
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16  # Unix, also when made elsewhere
            archive.writestr(info, contents[name])
    return file.getvalue()


def run_programs(content: bytes, root: Path) -> None:
    """Unpack a checked zip into a temporary folder and run its programs there, without the modules of `root`.

    Raises:
        UserError: when one fails, with the last line of its output.
    """
    modules = [Path(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    modules = [str(path) for path in modules if not path.resolve().is_relative_to(root.resolve())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(modules), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    settings = dict(env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=SMOKE_SECONDS)
    with tempfile.TemporaryDirectory(prefix="lab1-") as temporary:
        place = Path(temporary) / "a submission"  # a grader's path may have blanks
        zipfile.ZipFile(io.BytesIO(content)).extractall(place)
        for i, (name, command, result) in enumerate(SMOKE, start=1):
            print(f"{i}/{len(SMOKE)}: {name}$ python {command}", flush=True)
            folder, (program, *arguments) = place / name, command.split()
            arguments = [next(folder.glob(each), each) if "*" in each else each for each in arguments]
            what = f"{name}/{program}, run from the zip,"
            try:
                run = subprocess.run([sys.executable, program, *arguments], cwd=folder, **settings)
            except subprocess.TimeoutExpired:
                raise UserError(f"{what} did not end within {SMOKE_SECONDS} s") from None
            if run.returncode:
                lines = run.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {run.returncode}"]
                raise UserError(f"{what} fails: {lines[-1].strip()}")
            if not any(folder.glob(result)):
                raise UserError(f"{what} did not write {result}")


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--id", metavar="ID", help="make ID_lab1.zip")
    what.add_argument("--check", type=Path, metavar="FILE", help="list every fault of a zip instead of making one")
    add = parser.add_argument
    add("--out_dir", type=writable_folder, metavar="DIR", help="folder for the zip (default: the project)")
    add("--report", type=Path, metavar="FILE", help="the report (default: report/report.pdf of the project)")
    add("--root", type=Path, default=common.ROOT, metavar="DIR", help="the project (default: that of this program)")
    add("--smoke", choices=("on", "off"), help="run the zip's programs once (default: on, with --check off)")
    args = parser.parse_args()
    smoke = args.smoke == "on" if args.smoke else not args.check
    name = args.check.name if args.check else f"{args.id}_lab1.zip"
    target = args.check or (args.out_dir or args.root) / name
    with exit_on_user_error():
        if not re.fullmatch(r"[A-Za-z0-9]{1,32}_lab1\.zip", name):
            raise UserError(f"{target}: must be called ID_lab1.zip, the ID in letters and digits")
        if args.check:
            content = io.BytesIO(target.read_bytes())
            try:
                members = [*zip_members(zipfile.ZipFile(content))]
            except Exception:  # on arbitrary bytes it fails in many ways
                raise UserError(f"{target} is not a zip file, or is truncated") from None
        else:
            members = [member for folder in FILES for member in folder_members(args.root / folder)]
            report = args.report or args.root / "report" / REPORT
            if report.exists():
                members.append(Member(REPORT, True, report.stat().st_size, report.read_bytes))
        contents, faults = check(members)
        for place, fault in faults.items():
            print(f"{parser.prog}: error: {one_line(f'{place} {fault}')}", file=sys.stderr)
        if faults:
            sys.exit(2)
        if smoke:
            run_programs(zipped(contents), args.root)
        if not args.check:
            common.write(target, zipped(contents))
        print(f"{target}: {len(contents)} files, no faults, programs {'run' if smoke else 'not run'}")


if __name__ == "__main__":
    main()
