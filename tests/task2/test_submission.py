"""report/submission.py: what belongs to a submission, what is refused, and that the zip runs where it is unpacked.

Most tests work on a small project whose programs are a line each; two run the real one.
"""

import io
import os
import pickle
import stat
import zipfile
from pathlib import Path

import pytest
import torch

from oracles import refused

TASK1, TASK2, ID = "2d_plot_diffusion_todo", "image_diffusion_todo", "412551014"
ZIP, PROGRAM = f"{ID}_lab1.zip", "../report/submission.py"
PDF = b"%PDF-1.7\nsome pages\n%%EOF\n"
TOUCH = "import pathlib\npath = pathlib.Path('{}')\npath.parent.mkdir(parents=True)\npath.touch()\n"
CHECKPOINT = "results/predictor_noise/beta_linear/now/last.ckpt"
SOURCES = {  # the programs, in the order in which submission.py runs them
    f"{TASK1}/ddpm_tutorial.py": TOUCH.format("results/swiss_roll_samples.png"),
    f"{TASK2}/dataset.py": TOUCH.format("data/tiny/eval/cat_cat_00000.png"),
    f"{TASK2}/train.py": f"import scheduler\n{TOUCH.format(CHECKPOINT)}",
    f"{TASK2}/sampling.py": f"import sys\nsys.argv[2].index('{CHECKPOINT}')\n{TOUCH.format('samples/1.png')}",
    f"{TASK2}/fid/measure_fid.py": "",
}
MODULES = {TASK1: "dataset chamferdist network ddpm", TASK2: "scheduler model module network"}
HANDED_IN = {f"{folder}/{name}.py": b"" for folder, names in MODULES.items() for name in names.split()}
HANDED_IN |= {name: text.encode() for name, text in SOURCES.items()} | {"report.pdf": PDF}


def put(root, name, content=b""):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def tree(tmp_path):
    """A small project."""
    for name, content in HANDED_IN.items():
        put(tmp_path / "a project", f"report/{name}" if name == "report.pdf" else name, content)
    return tmp_path / "a project"


@pytest.fixture
def make(program, tree):
    """Make a zip of the small project."""
    return lambda *flags, smoke="off": program(PROGRAM, "--id", ID, "--root", tree, "--smoke", smoke, *flags)


@pytest.fixture
def check(program, tmp_path):
    """Check a zip made by hand: the small project with files added, some left out, or its bytes changed."""

    def run(*added, without=(), change=lambda content: content):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in [*((n, HANDED_IN[n]) for n in HANDED_IN if n not in without), *added]:
                archive.writestr(name, content)
        put(tmp_path, ZIP, change(file.getvalue()))
        return program(PROGRAM, "--check", ZIP)

    return run


def files_of(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def faulty(run):
    """The names that the lines of a refusal begin with."""
    assert run.returncode == 2
    return sorted(line.removeprefix("submission.py: error: ").split(" ")[0] for line in run.stderr.splitlines())


def test_the_zip_holds_the_sources_of_both_folders_and_the_report(program, request, tmp_path):
    report, root = put(tmp_path, "mine.pdf", PDF), request.config.rootpath
    run = program(PROGRAM, "--id", ID, "--report", report, "--out_dir", tmp_path / "new", "--smoke", "off")
    assert run.returncode == 0, run.stderr
    sources = [path.relative_to(root) for folder in (TASK1, TASK2) for path in (root / folder).rglob("*.py")]
    sources = {path.as_posix(): (root / path).read_bytes() for path in sources if "/." not in path.as_posix()}
    assert files_of(tmp_path / "new" / ZIP) == sources | {"report.pdf": PDF}


def test_what_programs_systems_and_the_lab_put_there_is_left_out_and_only_that(make, tree):
    ours = [f"{TASK1}/notes.md", f"{TASK2}/deeper/data/table.json", f"{TASK2}/data.py", f"{TASK2}/LICENSE"]
    theirs = ["data/afhq/train/cat/1.jpg", "results/run/last.ckpt", "samples/0.png", "venv/bin/python", ".hidden.py"]
    theirs += ["fid/__pycache__/x.pyc", ".ipynb_checkpoints/x.py", "network.py~", "Thumbs.db", "@eaDir/x.py/SYNO@.txt"]
    theirs += ["model.py:Zone.Identifier", "fid/afhq_inception_v3.ckpt", "tests/expected_outputs.pt"]
    for name in [*(f"{folder}/{name}" for name in theirs for folder in (TASK1, TASK2)), *ours]:
        put(tree, name, b"ours = 1" if name in ours else b"\0")
    (tree / TASK2 / "results").rename(tree / "on another disk")
    (tree / TASK2 / "results").symlink_to(tree / "on another disk")
    run = make()
    assert run.returncode == 0, run.stderr
    assert set(files_of(tree / ZIP)) == {*HANDED_IN, *ours}


def test_weights_under_any_name_are_refused_and_not_dropped(make, check, tree):
    torch.save({"state_dict": {"weight": torch.zeros(10)}}, checkpoint := io.BytesIO())
    planted = {"fid/inception.PTH": checkpoint.getvalue(), "notes.txt": checkpoint.getvalue(), "face.png": b"\x89PNG"}
    planted |= {"model.safetensors": bytes(8) + b"{}", "weights": b"1 2 3", "helper.py": bytes(100), "a:b.py": b""}
    planted |= {"notes.md": pickle.dumps([0.0] * 100), "windows.txt": "of Notepad".encode("utf-16")}
    planted |= {"long.json": b"1" * (2**20 + 1)}
    planted = {f"{folder}/{name}": content for name, content in planted.items() for folder in (TASK1, TASK2)}
    for name, content in planted.items():
        put(tree, name, content)
    (tree / TASK1 / "ddpm.py").unlink()
    assert faulty(make()) == sorted([*planted, f"{TASK1}/ddpm.py"]) and not list(tree.glob("*.zip"))
    assert faulty(check(*planted.items())) == sorted(planted)


def test_links_and_pipes_are_refused(make, check, tree):
    (tree / TASK2 / "linked.py").symlink_to(put(tree, "../secret.py", b"1"))
    os.mkfifo(tree / TASK2 / "pipe.py")  # reading it would wait for ever
    assert faulty(make()) == [f"{TASK2}/linked.py", f"{TASK2}/pipe.py"]
    link = zipfile.ZipInfo(f"{TASK2}/linked.py")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert refused(check((link, b"/etc/passwd")), "linked.py")


@pytest.mark.parametrize("content", [None, b"<html>", PDF[:-8]], ids=["none", "html", "truncated"])
def test_without_a_report_the_command_that_makes_it_is_named(make, tree, content):
    report = tree / "report/report.pdf"
    report.unlink() if content is None else report.write_bytes(content)
    assert refused(make(), "make report") and not list(tree.glob("*.zip"))


@pytest.mark.parametrize(
    "flags, named",
    [
        ([], "--id --check"),
        (["--id", "1", "--check", "1_lab1.zip"], "--check"),
        (["--check", "1_lab1.zip"], "1_lab1.zip"),
        (["--check", "mine.zip"], "mine.zip"),
        (["--id", "1", "--root", "nowhere"], "nowhere"),
        *((["--id", bad], "_lab1.zip") for bad in ["", "../x", "a b", "412551014_lab1", "é", "1\n", "1" * 33]),
    ],
)
def test_wrong_flags_are_named(program, flags, named):
    assert refused(program(PROGRAM, *flags), named)


def test_the_same_sources_give_the_same_bytes(make, tree):
    assert make().returncode == 0
    for path in [path for path in tree.rglob("*.p*") if path.is_file()]:
        os.utime(path, (1, 1))
        path.chmod(0o755)
    assert make("--out_dir", tree / "again").returncode == 0
    assert (tree / "again" / ZIP).read_bytes() == (tree / ZIP).read_bytes()


def test_a_zip_made_by_hand_may_be_compressed_and_keep_the_banners_of_the_skeleton(check):
    code = b'"""\n(TODO) Build a network.\n"""\n######## TODO ########\n# DO NOT change this.\nx = 1  # \b\n#######\n'
    run = check((f"{TASK2}/", b""), (f"{TASK1}/über uns.md", b"\xef\xbb\xbfnotes\r\n"), (f"{TASK2}/a.py", code))
    assert run.returncode == 0, run.stderr


def test_all_that_is_wrong_with_a_zip_is_named(check):
    places = ["/evil.py", "C:/evil.py", "../evil.py", f"{TASK2}/../../evil.py", f"{TASK2}//evil.py", "notes.txt"]
    places += [f"{TASK2}\\evil.py", "report.pdf/notes.pdf"]
    made = [f"{TASK2}/{name}" for name in ("data", "Samples", ".git", "fid/__pycache__", "fid/afhq_inception_v3.ckpt")]
    run = check(*((name, b"") for name in [*places, *made]), (f"{TASK2}/.git/config", b""), ("__MACOSX/._x", b""))
    assert faulty(run) == sorted([*places, *made, "__MACOSX"])
    assert faulty(check(without=HANDED_IN)) == sorted(HANDED_IN)
    around = ((f"{ID}_lab1/{name}", content) for name, content in HANDED_IN.items())
    assert faulty(check(*around, without=HANDED_IN)) == [f"{ID}_lab1"]
    assert faulty(check(*[(f"{TASK2}/x/{i}.txt", b"") for i in range(300)])) == [f"{TASK2}/x"]


@pytest.mark.parametrize(
    "content, named",
    [
        (b"pass\nif:", "line 2"),
        (b"(" * 10_000, "a.py"),
        (b'\nraise NotImplementedError("TODO: here!")', "line 2"),
        (b"0" * 20_000_000, "20,000,000"),
    ],
)
def test_unfinished_broken_and_huge_files_are_refused(check, content, named):
    assert refused(check((f"{TASK2}/a.py", content)), named)


def test_damaged_zips_are_refused(check):
    def claims_to_be_small(content):
        at = content.rindex(b"PK\1\2")  # of the last member, in the list at the end
        return content[:at] + content[at:].replace((5_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"), 1)

    mark = (zipfile.ZipInfo(f"{TASK2}/a.py"), b"a_mark = 1")  # not compressed
    assert refused(check(mark, change=lambda content: content.replace(b"a_mark", b"a_mask")), f"{TASK2}/a.py ")
    assert refused(check((f"{TASK2}/b.txt", b"0" * 5_000_000), change=claims_to_be_small), f"{TASK2}/b.txt ")
    assert refused(check(change=lambda content: content[:-30]), ZIP)


def test_the_programs_of_a_new_zip_run_where_it_is_unpacked_and_those_of_a_checked_one_if_asked(make, program, tree):
    log = tree / "log"
    note = f"import os, sys\nprint(os.getcwd(), sys.argv[0], sep='|', file=open({str(log)!r}, 'a'))\n".encode()
    for name in SOURCES:
        put(tree, name, note + HANDED_IN[name])
    assert make(smoke="on").returncode == 0
    places, programs = zip(*(line.split("|") for line in log.read_text().splitlines()), strict=True)
    assert [f"{Path(place).name}/{name}" for place, name in zip(places, programs, strict=True)] == [*SOURCES]
    assert not any(Path(place).is_relative_to(tree) or Path(place).exists() for place in places)
    for flags, runs in [([], 1), (["--smoke", "on"], 2)]:
        assert program(PROGRAM, "--check", tree / ZIP, *flags).returncode == 0
        assert len(log.read_text().splitlines()) == runs * len(SOURCES)


@pytest.mark.parametrize(
    "source, named",
    [
        ("print('hello')\nundefined_name", "NameError"),
        ("import data.helper", "data.helper"),
        ("import only_in_the_project", "only_in_the_project"),
        ("import of_the_system, sys; sys.exit(3)", "code 3"),
        ("", "samples/1.png"),
    ],
)
def test_a_zip_whose_programs_fail_replaces_nothing(make, tree, monkeypatch, tmp_path, source, named):
    put(tree, f"{TASK2}/data/helper.py")
    put(tree, "modules/only_in_the_project.py")
    put(tmp_path, "libraries/of_the_system.py")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tree / "modules"), str(tmp_path / "libraries")]))
    old = put(tree, ZIP, b"the old one")
    put(tree, f"{TASK2}/sampling.py", source.encode())
    run = make(smoke="on")
    assert refused(run, named) and f"{TASK2}/sampling.py" in run.stderr
    assert old.read_bytes() == b"the old one" and len(list(tree.iterdir())) == 5


def test_a_program_that_does_not_end_is_named(load_report, monkeypatch, tree):
    submission = load_report("submission")
    monkeypatch.setattr(submission, "SMOKE_SECONDS", 0.5)
    content = submission.zipped({f"{TASK1}/ddpm_tutorial.py": b"import time; time.sleep(100)"})
    with pytest.raises(submission.UserError, match=r"ddpm_tutorial\.py"):
        submission.run_programs(content, tree)


def test_the_smoke_commands_suit_the_programs_of_task_2(load_report, program, tmp_path):
    """In this process, which spares the imports; the slow test has processes of its own."""
    for folder, command, result in load_report("submission").SMOKE:
        if folder == TASK2:
            name, *arguments = command.split()
            run = program(name, *[next(tmp_path.glob(each)) if "*" in each else each for each in arguments])
            assert run.returncode == 0, run.stderr
            assert name.startswith("fid/") or any(tmp_path.glob(result))


@pytest.mark.slow
def test_the_project_itself_can_be_handed_in(program, tmp_path):
    report = put(tmp_path, "mine.pdf", PDF)
    run = program(PROGRAM, "--id", ID, "--report", report, "--out_dir", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / ZIP).exists()
