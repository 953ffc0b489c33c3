"""report/submission.py: what is handed in, what is refused, and that the zip runs where it is unpacked.

Most tests work on a small project whose programs are a line each; two run the real one.
"""

import io
import os
import pickle
import re
import stat
import zipfile
from pathlib import Path

import pytest
import torch

from oracles import refused

ROLL, FACES, ID = "2d_plot_diffusion_todo", "image_diffusion_todo", "412551014"
ZIP = f"{ID}_lab1.zip"
PDF = b"%PDF-1.7\nsome pages\n%%EOF\n"
TOUCH = "import pathlib\npath = pathlib.Path('{}')\npath.parent.mkdir(parents=True)\npath.touch()\n"
CHECKPOINT = "results/predictor_noise/beta_linear/now/last.ckpt"
SOURCES = {
    f"{ROLL}/ddpm_tutorial.py": TOUCH.format("results/swiss_roll_samples.png"),
    f"{FACES}/dataset.py": TOUCH.format("data/tiny/eval/cat_cat_00000.png"),
    f"{FACES}/train.py": f"import scheduler\n{TOUCH.format(CHECKPOINT)}",
    f"{FACES}/sampling.py": f"import sys\nsys.argv[2].index('{CHECKPOINT}')\n{TOUCH.format('samples/1.png')}",
    f"{FACES}/fid/measure_fid.py": "",
}  # the programs, in the order in which submission.py runs them
MODULES = {ROLL: "dataset chamferdist network ddpm", FACES: "scheduler model module network"}
PROJECT = {f"{folder}/{name}.py": b"" for folder, names in MODULES.items() for name in names.split()}
PROJECT |= {name: text.encode() for name, text in SOURCES.items()} | {"report/report.pdf": PDF}
HANDED_IN = {name.removeprefix("report/"): content for name, content in PROJECT.items()}


def put(root, name, content=b""):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def tree(tmp_path):
    """A small project."""
    for name, content in PROJECT.items():
        put(tmp_path / "a project", name, content)
    return tmp_path / "a project"


@pytest.fixture
def make(program, tree):
    """Make a zip of the small project."""
    flags = "--id", ID, "--root", tree, "--smoke"
    return lambda *more, smoke="off": program("../report/submission.py", *flags, smoke, *more)


@pytest.fixture
def check(program, tmp_path):
    """Check a zip made by hand: the small project with files added, some left out, or its bytes changed."""

    def run(*added, without=(), change=lambda content: content):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in [*((n, HANDED_IN[n]) for n in HANDED_IN if n not in without), *added]:
                archive.writestr(name, content)
        put(tmp_path, ZIP, change(file.getvalue()))
        return program("../report/submission.py", "--check", ZIP)

    return run


def files_of(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def faulty(run):
    """The names that the lines of a refusal begin with."""
    assert run.returncode == 2
    return sorted(line.removeprefix("submission.py: error: ").split(" ")[0] for line in run.stderr.splitlines())


def checkpoint():
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.zeros(10)}}, file)
    return file.getvalue()


def test_the_zip_holds_the_sources_of_both_folders_and_the_report(program, request, tmp_path):
    report, root = put(tmp_path, "mine.pdf", PDF), request.config.rootpath
    flags = ["--report", report, "--out_dir", tmp_path / "new", "--smoke", "off"]
    run = program("../report/submission.py", "--id", ID, *flags)
    assert run.returncode == 0, run.stderr
    sources = [path for folder in (ROLL, FACES) for path in (root / folder).rglob("*.py")]
    wanted = {path.relative_to(root).as_posix(): path.read_bytes() for path in sources}
    wanted = {name: content for name, content in wanted.items() if "/." not in name}  # of an editor
    assert files_of(tmp_path / "new" / ZIP) == wanted | {"report.pdf": PDF}


def test_what_programs_systems_and_the_lab_put_there_is_left_out_and_only_that(make, tree):
    ours = [f"{ROLL}/notes.md", f"{FACES}/deeper/data/table.json", f"{FACES}/data.py", f"{FACES}/LICENSE"]
    theirs = ["data/afhq/train/cat/1.jpg", "results/run/last.ckpt", "samples/0.png", "venv/bin/python", ".hidden.py"]
    theirs += ["__pycache__/model.pyc", "fid/__pycache__/x.pyc", ".ipynb_checkpoints/x.py", "network.py~", ".DS_Store"]
    theirs += ["Thumbs.db", "@eaDir/x.py/SYNO@.txt", "model.py:Zone.Identifier"]
    theirs += ["fid/afhq_inception_v3.ckpt", "tests/expected_outputs.pt"]
    for name in theirs:
        put(tree / ROLL, name, b"\0")
        put(tree / FACES, name, b"\0")
    for name in ours:
        put(tree, name, b"ours = 1")
    (tree / FACES / "results").rename(tree / "on another disk")
    (tree / FACES / "results").symlink_to(tree / "on another disk")
    run = make()
    assert run.returncode == 0, run.stderr
    assert set(files_of(tree / ZIP)) == {*HANDED_IN, *ours}


NOT_SOURCE = {
    "fid/inception.PTH": checkpoint(),
    "model.safetensors": bytes(8) + b"{}",
    "face.png": b"\x89PNG",
    "weights": b"1 2 3",
    "notes.txt": checkpoint(),  # by its contents, whatever the name says
    "notes.md": pickle.dumps({"weights": [0.0] * 100}),
    "helper.py": bytes(100),
    "windows.txt": "a file of Notepad".encode("utf-16"),
    "long.json": b"1" * (2**20 + 1),
    "a:b.py": b"",
}


def test_weights_under_any_name_are_refused_and_not_dropped(make, check, tree):
    planted = {f"{folder}/{name}": content for name, content in NOT_SOURCE.items() for folder in (ROLL, FACES)}
    for name, content in planted.items():
        put(tree, name, content)
    (tree / ROLL / "ddpm.py").unlink()
    assert faulty(make()) == sorted([*planted, f"{ROLL}/ddpm.py"]) and not list(tree.glob("*.zip"))
    assert faulty(check(*planted.items())) == sorted(planted)


def test_links_and_pipes_are_refused(make, check, tree):
    (tree / FACES / "linked.py").symlink_to(put(tree, "../secret.py", b"1"))
    os.mkfifo(tree / FACES / "pipe.py")  # reading it would wait for ever
    assert faulty(make()) == [f"{FACES}/linked.py", f"{FACES}/pipe.py"]
    link = zipfile.ZipInfo(f"{FACES}/linked.py")
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
    assert refused(program("../report/submission.py", *flags), named)


def test_the_same_sources_give_the_same_bytes(make, tree):
    assert make().returncode == 0
    for i, name in enumerate(reversed(PROJECT)):
        (tree / name).unlink()
        os.utime(put(tree, name, PROJECT[name]), (i, i))
        (tree / name).chmod(0o755)
    assert make("--out_dir", tree / "again").returncode == 0
    assert (tree / "again" / ZIP).read_bytes() == (tree / ZIP).read_bytes()


def test_a_zip_made_by_hand_may_be_compressed_and_keep_the_banners_of_the_skeleton(check):
    notes = (f"{ROLL}/über uns.md", b"\xef\xbb\xbfnotes\r\n")
    code = b'"""\n(TODO) Build a network.\n"""\n######## TODO ########\n# DO NOT change this.\nx = 1  # \b\n#######\n'
    run = check((f"{FACES}/", b""), notes, (f"{FACES}/a.py", code))
    assert run.returncode == 0, run.stderr


def test_places_outside_and_what_is_not_handed_in_are_refused(check):
    places = ["/evil.py", "C:/evil.py", "../evil.py", f"{FACES}/../../evil.py", f"{FACES}//evil.py", "notes.txt"]
    places += [f"{FACES}\\evil.py", f"{FACES}/evil\n.py", "report.pdf/notes.pdf"]
    made = ["__MACOSX/", f"{FACES}/data/", f"{FACES}/Samples/0.txt", f"{FACES}/.git/config.txt", f"{FACES}/Thumbs.db"]
    made += [f"{FACES}/fid/__pycache__/measure_fid.py", f"{FACES}/fid/afhq_inception_v3.ckpt"]
    run = check(*((name, b"") for name in [*places, *made, "__MACOSX/._report.pdf"]))
    named = [re.sub("/$|/0.txt|/config.txt|/measure_fid.py", "", name) for name in made]
    assert faulty(run) == sorted([name.replace("\n", "\\n") for name in places] + named)


def test_every_missing_file_is_named_and_a_folder_around_everything_once(check):
    assert faulty(check(without=HANDED_IN)) == sorted(HANDED_IN)
    members = ((f"{ID}_lab1/{name}", content) for name, content in HANDED_IN.items())
    assert faulty(check(*members, without=HANDED_IN)) == [f"{ID}_lab1"]


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
    assert refused(check((f"{FACES}/a.py", content)), named)


def test_damaged_zips_are_refused(check):
    def claims_to_be_small(content):
        at = content.rindex(b"PK\1\2")  # of the last member, in the list at the end
        return content[:at] + content[at:].replace((5_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"), 1)

    mark = (zipfile.ZipInfo(f"{FACES}/a.py"), b"a_mark = 1")  # not compressed
    assert refused(check(mark, change=lambda content: content.replace(b"a_mark", b"a_mask")), f"{FACES}/a.py ")
    assert refused(check((f"{FACES}/b.txt", b"0" * 5_000_000), change=claims_to_be_small), f"{FACES}/b.txt ")
    assert refused(check(change=lambda content: content[:-30]), ZIP)
    assert refused(check(*[(f"{FACES}/x/{i}.txt", b"") for i in range(300)]), f"{FACES}/x is")


def test_the_programs_of_a_new_zip_run_where_it_is_unpacked_and_those_of_a_checked_one_if_asked(
    make, program, tree, tmp_path
):
    log = tmp_path / "log"
    note = f"import os, sys\nprint(os.getcwd(), sys.argv[0], sep='|', file=open({str(log)!r}, 'a'))\n".encode()
    for name in SOURCES:
        put(tree, name, note + PROJECT[name])
    assert make(smoke="on").returncode == 0
    places, programs = zip(*(line.split("|") for line in log.read_text().splitlines()), strict=True)
    assert [f"{Path(place).name}/{name}" for place, name in zip(places, programs, strict=True)] == [*SOURCES]
    assert not any(Path(place).is_relative_to(tree) or Path(place).exists() for place in places)
    for flags, runs in [([], 1), (["--smoke", "on"], 2)]:
        assert program("../report/submission.py", "--check", tree / ZIP, *flags).returncode == 0
        assert len(log.read_text().splitlines()) == runs * len(SOURCES)


@pytest.mark.parametrize(
    "source, named",
    [
        ("print('hello')\nundefined_name", "NameError"),
        ("import data.helper", "data.helper"),
        ("import sys; sys.exit(3)", "3"),
        ("import only_in_the_project", "only_in_the_project"),
        ("import of_the_system", "samples/1.png"),
    ],
)
def test_a_zip_whose_programs_fail_replaces_nothing(make, tree, monkeypatch, tmp_path, source, named):
    put(tree, f"{FACES}/data/helper.py", b"")
    put(tree, "modules/only_in_the_project.py", b"")
    put(tmp_path, "libraries/of_the_system.py", b"")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tree / "modules"), str(tmp_path / "libraries")]))
    old = put(tree, ZIP, b"the old one")
    put(tree, f"{FACES}/sampling.py", source.encode())
    run = make(smoke="on")
    assert refused(run, named) and f"{FACES}/sampling.py" in run.stderr
    assert old.read_bytes() == b"the old one" and len(list(tree.iterdir())) == 5


def test_a_program_that_does_not_end_is_named(load_report, monkeypatch, tree):
    submission = load_report("submission")
    monkeypatch.setattr(submission, "SMOKE_SECONDS", 0.5)
    content = submission.zipped({f"{ROLL}/ddpm_tutorial.py": b"import time; time.sleep(100)"})
    with pytest.raises(submission.UserError, match=r"ddpm_tutorial\.py"):
        submission.run_programs(content, tree)


def test_the_smoke_commands_suit_the_programs_of_task_2(load_report, program, tmp_path):
    """In this process, which spares the imports; the slow test has processes of its own."""
    for folder, command, result in load_report("submission").SMOKE:
        if folder == FACES:
            name, *arguments = command.split()
            run = program(name, *[next(tmp_path.glob(each)) if "*" in each else each for each in arguments])
            assert run.returncode == 0, run.stderr
            assert name.startswith("fid/") or any(tmp_path.glob(result))


@pytest.mark.slow
def test_the_project_itself_can_be_handed_in(program, tmp_path):
    report = put(tmp_path, "mine.pdf", PDF)
    run = program("../report/submission.py", "--id", ID, "--report", report, "--out_dir", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / ZIP).exists()
