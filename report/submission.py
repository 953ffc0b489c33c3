"""What the lab wants handed in: {ID}_lab1.zip with report.pdf, 2d_plot_diffusion_todo/ and image_diffusion_todo/.

    python report/submission.py --id 412551014
    python report/submission.py --check 412551014_lab1.zip      # one that was zipped by hand

The folders go in without what programs made there: data/, results/, samples/, caches, hidden files. All else must be
source. Weights and pictures are refused, under any name, rather than left out: the lab wants none, and nobody shall
find out later that a file of theirs was dropped. The zip is then checked and unpacked elsewhere, and its programs are
run for a moment; only then does it take the place of an older one. The same sources give the same bytes.

--check names every fault of a zip, and runs nothing of it unless --smoke on says so.
"""

import argparse
import io
import os
import re
import stat
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "image_diffusion_todo"))

from atomic import atomic_write
from cli import ArgumentParser, exit_on_user_error, one_line, writable_folder

REPORT, ROLL, FACES = "report.pdf", "2d_plot_diffusion_todo", "image_diffusion_todo"
TOP = (REPORT, ROLL, FACES)
CONTRACT = {
    ROLL: "dataset.py chamferdist.py network.py ddpm.py ddpm_tutorial.py",
    FACES: "dataset.py scheduler.py model.py module.py network.py train.py sampling.py fid/measure_fid.py",
}
GENERATED = ("data", "results", "samples")  # at the top of a task folder
LITTER = ("__pycache__", "__macosx", "thumbs.db", "desktop.ini")  # anywhere
SUFFIXES = (".py", ".md", ".txt", ".ipynb", ".json", ".toml", ".yaml", ".yml", ".cfg", ".sh")
NAMES = ("LICENSE", "Makefile")  # that have no suffix
MAX_SOURCE, MAX_REPORT, MAX_ZIP, MAX_FILES = 2**20, 50 * 2**20, 100 * 2**20, 300
# How the skeleton marks what is to be written.
SKELETON = re.compile(r"#{2,}\s*TODO|\(TODO\)|NotImplementedError\([\"']TODO")

# Each program for a moment, and what it must leave behind. A star stands for the one name that is there.
SMOKE = (
    (ROLL, "ddpm_tutorial.py --num_iterations 20 --device cpu", "results/swiss_roll_samples.png"),
    (
        FACES,
        "dataset.py --data_root data/drawn --synthetic 2 --image_resolution 8",
        "data/drawn/eval/cat_cat_00000.png",
    ),
    (
        FACES,
        "train.py --data_root data/drawn --image_resolution 8 --ch 32 --ch_mult 1 --attn --num_res_blocks 1 "
        "--num_diffusion_train_timesteps 4 --batch_size 2 --train_num_steps 2 --log_interval 2 --device cpu",
        "results/predictor_noise/beta_linear/*/last.ckpt",
    ),
    (
        FACES,
        "sampling.py --ckpt_path results/predictor_noise/beta_linear/*/last.ckpt --save_dir samples --num_samples 2 "
        "--device cpu",
        "samples/1.png",
    ),
    (FACES, "fid/measure_fid.py --help", "fid/measure_fid.py"),  # more would need the weights of Inception
)
SMOKE_SECONDS = 600  # for each program; most take a few
SHOWN = 20  # faults


def skipped(name: str, is_folder: bool) -> str | None:
    """The file or folder on the way to a member that programs, editors or systems made; None if there is none."""
    parts = name.split("/")
    for i, part in enumerate(parts):
        generated = i == 1 and part.lower() in GENERATED and (is_folder or len(parts) > 2)
        if generated or part.startswith(".") or part.endswith("~") or part.lower() in LITTER:
            return "/".join(parts[: i + 1])
    return None


def fault_of_path(name: str) -> str | None:
    """What is wrong with where a member would be unpacked to."""
    if any(part in ("", ".", "..") for part in name.split("/")) or re.search(r"[\\:]", name) or not name.isprintable():
        return "names a place outside the zip, or one that not all systems know"
    return None


def fault_of_kind(name: str) -> str | None:
    """What is wrong with the kind of a file, going by its name."""
    path = PurePosixPath(name)
    if name != REPORT and path.suffix.lower() not in SUFFIXES and path.name not in NAMES:
        return f"is no source ({' '.join(SUFFIXES)}), and weights, data and pictures are not handed in: move it away"
    return None


def fault_of_size(name: str, size: int) -> str | None:
    """What is wrong with the size of a file."""
    limit = MAX_REPORT if name == REPORT else MAX_SOURCE
    return f"has {size:,} bytes, more than the {limit:,} that this program hands in" if size > limit else None


def fault_of_content(name: str, content: bytes) -> str | None:
    """What is wrong with what is in a file."""
    if name == REPORT:
        if not content.startswith(b"%PDF-") or b"%%EOF" not in content[-1024:]:
            return "is no PDF, or one that was cut off: `make report` makes it"
        return None
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if re.search(r"[^\t\n\f\r -\U0010ffff]", text):
        return "is not text in UTF-8, whatever its name says; weights and data are not handed in: move it away"
    if not name.endswith((".py", ".ipynb")):
        return None
    marks = [str(i) for i, line in enumerate(text.split("\n"), start=1) if SKELETON.search(line)]
    if marks:
        return f"has a TODO of the skeleton left in line {', '.join(marks)}"
    return fault_of_syntax(content) if name.endswith(".py") else None


def fault_of_syntax(source: bytes) -> str | None:
    """Why Python cannot read a program; nothing of it is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, "program", "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"is no Python: line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:
        return f"is no Python: {error}"
    return None


def sources(root: Path, report: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """What is to be handed in.

    Returns:
        The contents of the zip by name, and what is wrong with what could not be taken.

    Raises:
        OSError: when something cannot be read.
    """
    contents: dict[str, bytes] = {}
    faults: dict[str, str] = {}

    def take(path: Path, name: str) -> None:
        if fault := fault_of_path(name) or fault_of_kind(name) or fault_of_size(name, path.stat().st_size):
            faults[name] = fault
        else:
            contents[name] = path.read_bytes()

    def walk(folder: Path, inside: str) -> None:
        for path in sorted(folder.iterdir()):
            name = f"{inside}/{path.name}"
            if skipped(name, is_folder=path.is_dir() or path.is_symlink()):  # data/ may be a link to another disk
                continue
            if path.is_symlink():
                faults[name] = "is a link: put the file itself there"
            elif path.is_dir():
                walk(path, name)
            elif path.is_file():
                take(path, name)
            else:
                faults[name] = "is not a file"

    for folder in (ROLL, FACES):
        if (root / folder).is_dir():
            walk(root / folder, folder)
    if report.is_file():
        take(report, REPORT)
    else:
        faults[REPORT] = "is not a file" if report.exists() else "is not there: `make report` makes it"
    return contents, faults


def zipped(contents: dict[str, bytes]) -> bytes:
    """A zip file. Its bytes follow from the contents alone: sorted, of one date, and not compressed, since the releases
    of zlib do not all compress alike."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(contents):
            info = zipfile.ZipInfo(name)  # of 1980-01-01
            info.create_system = 3  # Unix, also when made elsewhere
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, contents[name])
    return file.getvalue()


def faults_of(content: bytes) -> dict[str, str]:
    """What is wrong with a zip, by the name of the member ("": of the whole). It may come from a stranger.

    Nothing is unpacked, and no member is read that claims to be large.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except Exception:  # on foreign bytes the reader fails in many ways
        return {"": "is no zip file, or one that was cut off"}
    members = archive.infolist()
    if len(members) > MAX_FILES:
        return {"": f"holds {len(members)} files and folders, more than the {MAX_FILES} that this program hands in"}

    faults: dict[str, str] = {}
    spellings: set[str] = set()
    folders = {str(folder).lower() for info in members for folder in PurePosixPath(info.filename).parents}
    for info in members:
        name = info.filename.removesuffix("/")
        top = name.split("/")[0]
        if fault := fault_of_path(name) or fault_of_path(info.orig_filename.removesuffix("/")):
            faults.setdefault(name, fault)
        elif top not in TOP:
            faults.setdefault(top, f"is not one of the three at the root of the zip: {', '.join(TOP)}")
        elif left := skipped(name, info.is_dir()):
            faults.setdefault(left, "was made by a program, and is not handed in: take it out")
        elif name.lower() in spellings or (name.lower() in folders and not info.is_dir()):
            faults.setdefault(name, "is there twice, at least where upper and lower case are the same")
        elif fault := fault_of_member(archive, info):
            faults.setdefault(name, fault)
        spellings.add(name.lower())

    files = {info.filename for info in members if not info.is_dir()}
    if REPORT not in files:
        faults.setdefault(REPORT, "is missing")
    for folder, wanted in CONTRACT.items():
        if not any(name.startswith(f"{folder}/") for name in files):
            faults.setdefault(folder, "is missing")
            continue
        for name in sorted({f"{folder}/{file}" for file in wanted.split()} - files):
            faults.setdefault(name, "is missing")
    return faults


def fault_of_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str | None:
    """What is wrong with one member of a zip, whose place is right."""
    name = info.filename.removesuffix("/")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a link: put the file itself there"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (info.is_dir() and info.file_size):
        return "is neither a file nor a folder"
    if name.split("/")[0] == REPORT and (info.is_dir() or name != REPORT):
        return "must be a file"
    if name in CONTRACT and not info.is_dir():
        return "must be a folder"
    if info.is_dir():
        return None
    if fault := fault_of_kind(name) or fault_of_size(name, info.file_size):
        return fault
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others could unpack to any size
        return "is compressed in a way that not all programs read"
    try:
        content = archive.read(info)  # no more than it claims, and its checksum is looked at
    except Exception:  # see above
        return "is damaged"
    return fault_of_content(name, content)


def smoke(content: bytes, root: Path) -> None:
    """Unpack a zip that is without fault into a temporary folder, and run its programs there, out of sight of `root`.

    Raises:
        ValueError: when one fails, with the last line that it said.
    """
    # PyTorch itself may be on this path; the project's own modules must not.
    search = [Path(each).resolve() for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    search = [str(each) for each in search if not each.is_relative_to(root.resolve())]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(search), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory(prefix="lab1-") as temporary:
        place = Path(temporary) / "handed in"  # graders have blanks in their paths
        zipfile.ZipFile(io.BytesIO(content)).extractall(place)
        for i, (folder, command, leaves) in enumerate(SMOKE, start=1):
            print(f"{i}/{len(SMOKE)}: {folder}$ python {command}", flush=True)
            program, *arguments = command.split()
            arguments = [next(_matches(place / folder, each), each) if "*" in each else each for each in arguments]
            try:
                done = subprocess.run(
                    [sys.executable, program, *arguments],
                    cwd=place / folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    timeout=SMOKE_SECONDS,
                )
            except subprocess.TimeoutExpired:
                raise ValueError(f"{folder}/{program} did not end within {SMOKE_SECONDS} s, unpacked and run") from None
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
                raise ValueError(f"{folder}/{program} fails, unpacked and run: {said[-1].strip()}")
            if not any(_matches(place / folder, leaves)):
                raise ValueError(f"{folder}/{program} did not make {leaves}, unpacked and run")


def _matches(folder: Path, pattern: str) -> Iterator[str]:
    """Files below a folder, relative to it."""
    return (path.relative_to(folder).as_posix() for path in folder.glob(pattern) if path.is_file())


def read_zip(path: Path) -> bytes:
    """The bytes of a zip that shall be checked.

    Raises:
        OSError, ValueError: when it is not there, no file, or too large to be looked at.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a file")
    if path.stat().st_size > MAX_ZIP:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes, more than the {MAX_ZIP:,} that a submission may have")
    return path.read_bytes()


def stop_at(faults: dict[str, str], zip_name: str = "", report: str = REPORT) -> None:
    """End the program if there are faults, with a line for each."""
    lines = []
    for name, fault in faults.items():
        where = ": ".join(filter(None, [zip_name, report if name == REPORT else name])) or "the zip"
        lines.append(one_line(f"{where} {fault}"))
    if len(lines) > SHOWN:
        lines[SHOWN - 1 :] = [f"and {len(lines) - SHOWN + 1} more"]
    for line in lines:
        print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
    if lines:
        sys.exit(2)


def student_id(text: str) -> str:
    """An argparse type: letters and digits."""
    if not re.fullmatch(r"[A-Za-z0-9]{1,32}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an id of up to 32 letters and digits, such as 412551014")
    return text


def main() -> None:
    """The program."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--id", type=student_id, metavar="ID", help="make ID_lab1.zip")
    what.add_argument("--check", type=Path, metavar="FILE", help="name every fault of a zip instead of making one")
    add = parser.add_argument
    add("--out_dir", type=writable_folder, metavar="DIR", help="gets the zip (default: the project)")
    add("--report", type=Path, metavar="FILE", help="the report (default: report/report.pdf of the project)")
    add("--root", type=Path, metavar="DIR", help="the project (default: the one that this program is in)")
    run = "run the zip's programs for a moment (default: on, with --check off)"
    add("--smoke", choices=("on", "off"), help=run)
    args = parser.parse_args()
    if args.check:
        for flag in ("out_dir", "report", "root"):
            if getattr(args, flag) is not None:
                parser.error(f"argument --{flag}: does nothing with --check")
    root = args.root or ROOT
    report = args.report or root / "report" / REPORT

    with exit_on_user_error():
        if args.check:
            target, content = args.check, read_zip(args.check)
            faults = faults_of(content)
            if not re.fullmatch(r"[A-Za-z0-9]+_lab1\.zip", target.name):
                faults = {"": "must be called ID_lab1.zip, such as 412551014_lab1.zip"} | faults
            stop_at(faults, zip_name=str(target))
        else:
            if not root.is_dir():
                raise ValueError(f"argument --root: {root} is not a folder")
            target = (args.out_dir or root) / f"{args.id}_lab1.zip"
            contents, faults = sources(root, report)
            content = zipped(contents)
            stop_at(faults_of(content) | faults, report=str(report))
        runs = args.smoke == "on" or (args.smoke is None and not args.check)
        if runs:
            smoke(content, root)
        if not args.check:
            with atomic_write(target) as file:
                file.write(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        number = sum(not info.is_dir() for info in archive.infolist())
    ran = "its programs run" if runs else "its programs were not run"
    print(f"{target}: {number} files, {len(content):,} bytes; no fault found, {ran}")


if __name__ == "__main__":
    main()
