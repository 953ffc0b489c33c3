"""report/submission.py: what is handed in, what is refused, and that it runs where it is unpacked.

Most tests work on a small tree of their own, whose programs are a line each; two run the project's.
"""

import io
import os
import pickle
import re
import stat
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from oracles import refused

ROLL, FACES, ID = "2d_plot_diffusion_todo", "image_diffusion_todo", "412551014"
PDF = b"%PDF-1.7\nsome pages\n%%EOF\n"
STUBS = {
    f"{ROLL}/dataset.py": "",
    f"{ROLL}/chamferdist.py": "",
    f"{ROLL}/network.py": "",
    f"{ROLL}/ddpm.py": "",
    f"{ROLL}/ddpm_tutorial.py": "made = 'results/swiss_roll_samples.png'",
    f"{FACES}/dataset.py": "made = 'data/drawn/eval/cat_cat_00000.png'",
    f"{FACES}/scheduler.py": "MODES = 3",
    f"{FACES}/model.py": "",
    f"{FACES}/module.py": "",
    f"{FACES}/network.py": "",
    f"{FACES}/train.py": "import scheduler\nmade = 'results/predictor_noise/beta_linear/now/last.ckpt'",
    f"{FACES}/sampling.py": "import sys\nassert 'results/predictor_noise/beta_linear/now/last.ckpt' in sys.argv\n"
    "made = 'samples/1.png'",
    f"{FACES}/fid/measure_fid.py": "",
}
MAKE = "\nimport pathlib\nplace = pathlib.Path(made)\nplace.parent.mkdir(parents=True)\nplace.touch()\n"


def content_of(name):
    return (STUBS[name] + MAKE * ("made =" in STUBS[name])).encode()


@pytest.fixture
def submission(load_report):
    return load_report("submission")


@pytest.fixture
def tree(tmp_path):
    """A project in small."""
    root = tmp_path / "a project"
    for name in STUBS:
        put(root, name, content_of(name))
    put(root, "report/report.pdf", PDF)
    return root


@pytest.fixture
def make(program, tree):
    def run(*arguments, smoke="off"):
        return program("../report/submission.py", "--id", ID, "--root", tree, "--smoke", smoke, *arguments)

    return run


@pytest.fixture
def check(program, tmp_path):
    """Check a zip of the small project, with members added or changed, that somebody made by hand."""

    def run(*members, without=(), change=None, name=f"{ID}_lab1.zip"):
        names = [n for n in STUBS if n not in without]
        members = [
            *((n, content_of(n)) for n in names),
            *[("report.pdf", PDF)] * ("report.pdf" not in without),
            *members,
        ]
        (tmp_path / name).write_bytes(change(archive(members)) if change else archive(members))
        return program("../report/submission.py", "--check", name)

    return run


def put(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def archive(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as into, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in members:
            into.writestr(name, content)
    return file.getvalue()


def member(name, mode=stat.S_IFREG | 0o644, compression=zipfile.ZIP_STORED):
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, compression
    return info


def files_of(path):
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None
        return {name: opened.read(name) for name in opened.namelist()}


def checkpoint():
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.zeros(10)}}, file)
    return file.getvalue()


def test_the_zip_holds_the_sources_of_both_folders_and_the_report(program, request, tmp_path):
    report = put(tmp_path, "mine.pdf", PDF)
    arguments = ["--id", ID, "--report", report, "--out_dir", tmp_path / "new", "--smoke", "off"]
    run = program("../report/submission.py", *arguments)
    assert run.returncode == 0, run.stderr
    made = files_of(tmp_path / "new" / f"{ID}_lab1.zip")
    root = request.config.rootpath
    sources = [path for folder in (ROLL, FACES) for path in (root / folder).rglob("*.py")]
    sources = [path for path in sources if "/." not in path.relative_to(root).as_posix()]  # of an editor
    wanted = {path.relative_to(root).as_posix(): path.read_bytes() for path in sources}
    assert made == wanted | {"report.pdf": PDF}
    assert f"{ID}_lab1.zip: {len(made)} files, " in run.stdout and "not run" in run.stdout


def test_what_programs_made_is_left_out_and_only_that(make, tree):
    ours = [f"{ROLL}/notes.md", f"{FACES}/deeper/data/table.json", f"{FACES}/data.py", f"{FACES}/LICENSE"]
    theirs = ["data/afhq/train/cat/1.jpg", "results/run/last.ckpt", "samples/0.png", "samples/notes.txt", ".hidden.py"]
    theirs += ["__pycache__/model.pyc", "fid/__pycache__/x.pyc", ".ipynb_checkpoints/x.py", "network.py~", ".DS_Store"]
    for name in ours:
        put(tree, name, b"ours")
    for name in theirs:
        put(tree / ROLL, name, b"\0")
        put(tree / FACES, name, b"\0")
    put(tree, "elsewhere/last.ckpt", b"\0")
    put(tree, f"{FACES}/data.py", b"ours = 1")
    (tree / FACES / "results").rename(tree / "on another disk")
    (tree / FACES / "results").symlink_to(tree / "on another disk")
    run = make()
    assert run.returncode == 0, run.stderr
    assert set(files_of(tree / f"{ID}_lab1.zip")) == {*STUBS, *ours, "report.pdf"}


NOT_HANDED_IN = {
    "last.ckpt": checkpoint(),
    "fid/inception.PTH": checkpoint(),
    "model.safetensors": bytes(8) + b"{}",
    "statistics.npz": b"PK\3\4",
    "face.png": b"\x89PNG",
    "weights": b"1 2 3",
    "notes.txt": checkpoint(),  # by its contents, whatever the name says
    "notes.md": pickle.dumps({"weights": [0.0] * 100}),
    "helper.py": bytes(100),
    "windows.txt": "a file of Notepad".encode("utf-16"),
    "long.json": b"1" * (2**20 + 1),
    "a:b.py": b"",
}


@pytest.mark.parametrize("name", NOT_HANDED_IN)
def test_weights_under_any_name_are_refused_and_not_dropped(make, check, tree, name):
    for folder in (ROLL, FACES):
        path = put(tree, f"{folder}/{name}", NOT_HANDED_IN[name])
        assert refused(make(), f"{folder}/{name} ")
        path.rename(tree / "away")
        assert not list(tree.glob("*.zip"))
        assert refused(check((f"{folder}/{name}", NOT_HANDED_IN[name])), f"{ID}_lab1.zip: {folder}/{name} ")
    assert make().returncode == 0


def test_links_and_what_is_no_file_are_refused(make, tree):
    secret = put(tree, "../secret.py", b"1")
    (tree / FACES / "linked.py").symlink_to(secret)
    assert refused(make(), f"{FACES}/linked.py is a link")
    (tree / FACES / "linked.py").unlink()
    (tree / FACES / "linked").symlink_to(secret.parent)
    assert refused(make(), f"{FACES}/linked is a link")
    (tree / FACES / "linked").unlink()
    os.mkfifo(tree / FACES / "pipe.py")  # reading it would wait for ever
    assert refused(make(), f"{FACES}/pipe.py is not a file")


@pytest.mark.parametrize("content", [None, b"", b"<html>", PDF[:-8]], ids=["none", "empty", "html", "cut off"])
def test_without_a_report_the_way_to_one_is_said(make, tree, content):
    report = tree / "report/report.pdf"
    report.unlink() if content is None else report.write_bytes(content)
    assert refused(make(), "make report") and refused(make(), str(report))
    assert not list(tree.glob("*.zip"))
    assert make("--report", put(tree, "other.pdf", PDF)).returncode == 0


@pytest.mark.parametrize("bad", ["", "../x", "a b", "412551014_lab1", "é", "1\n", "1" * 33])
def test_ids_are_letters_and_digits(program, tree, bad):
    assert refused(program("../report/submission.py", "--id", bad, "--root", tree), "argument --id")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "--id --check"),
        (["--id", "1", "--check", "1_lab1.zip"], "--check: not allowed with argument --id"),
        (["--check", "1_lab1.zip", "--root", "."], "--root: does nothing with --check"),
        (["--check", "1_lab1.zip"], "1_lab1.zip: No such file"),
        (["--check", "."], "not a file"),
        (["--id", "1", "--root", "nowhere", "--report", "mine.pdf"], "--root: nowhere is not a folder"),
    ],
)
def test_flags_that_do_not_fit(program, tmp_path, arguments, words):
    put(tmp_path, "mine.pdf", PDF)
    assert refused(program("../report/submission.py", *arguments), words)


def test_the_same_sources_give_the_same_bytes(make, submission, tree):
    assert submission.zipped({"a": b"1", "b": b"2"}) == submission.zipped({"b": b"2", "a": b"1"})
    assert make().returncode == 0
    first = (tree / f"{ID}_lab1.zip").read_bytes()
    for i, name in enumerate(reversed(STUBS)):
        (tree / name).unlink()
        os.utime(put(tree, name, content_of(name)), (i, i))
        (tree / name).chmod(0o755)
    assert make("--out_dir", tree / "again").returncode == 0
    assert (tree / "again" / f"{ID}_lab1.zip").read_bytes() == first
    put(tree, f"{FACES}/model.py", b"changed = True")
    assert make().returncode == 0
    assert files_of(tree / f"{ID}_lab1.zip")[f"{FACES}/model.py"] == b"changed = True"


def test_a_zip_made_by_hand_may_be_compressed_and_have_folders(check):
    run = check((f"{FACES}/", b""), (f"{ROLL}/", b""), (f"{ROLL}/über uns.md", b"\xef\xbb\xbfnotes\r\n"))
    assert run.returncode == 0, run.stderr
    assert f"{len(STUBS) + 2} files, " in run.stdout and "no fault found" in run.stdout


PLACES = "names a place outside"
LEFT_OUT = "was made by a program"
FAULTY_MEMBERS = {
    "../evil.py": PLACES,
    "/evil.py": PLACES,
    "C:/evil.py": PLACES,
    f"{FACES}/../../evil.py": PLACES,
    f"{FACES}//evil.py": PLACES,
    f"{FACES}\\evil.py": PLACES,
    f"{FACES}/evil\n.py": PLACES,
    f"{FACES}/data/notes.txt": f"{FACES}/data {LEFT_OUT}",
    f"{FACES}/data/": f"{FACES}/data {LEFT_OUT}",
    f"{ROLL}/results/loss.txt": f"{ROLL}/results {LEFT_OUT}",
    f"{FACES}/Samples/0.txt": f"{FACES}/Samples {LEFT_OUT}",
    f"{FACES}/fid/__pycache__/measure_fid.py": f"{FACES}/fid/__pycache__ {LEFT_OUT}",
    f"{FACES}/.DS_Store": LEFT_OUT,
    f"{FACES}/.git/config.txt": f"{FACES}/.git {LEFT_OUT}",
    f"{FACES}/Thumbs.db": LEFT_OUT,
    "__MACOSX/._report.pdf": "__MACOSX is not one of the three",
    "notes.txt": "notes.txt is not one of the three",
    f"{FACES}/model.py": f"{FACES}/model.py is there twice",
    f"{FACES}/MODEL.py": f"{FACES}/MODEL.py is there twice",
    f"{FACES}/train.py/more.py": f"{FACES}/train.py is there twice",
}


@pytest.mark.parametrize("name", FAULTY_MEMBERS)
def test_members_that_should_not_be_in_a_zip(check, name):
    assert refused(check((name, b"")), FAULTY_MEMBERS[name])


def test_a_name_that_is_cut_at_a_zero_byte(check):
    """Some programs would unpack to what stands before it, others not at all."""
    name = f"{FACES}/evil.pyX.txt"
    run = check((name, b""), change=lambda content: content.replace(b"evil.pyX", b"evil.py\0"))
    assert refused(run, PLACES)


@pytest.mark.parametrize("name, words", [("report.pdf/", "must be a file"), ("report.pdf/a.pdf", "must be a file")])
def test_a_report_that_is_a_folder(check, name, words):
    run = check((name, b""), without=["report.pdf"])
    assert run.returncode == 2 and f"{name.removesuffix('/')} {words}" in run.stderr


def test_a_folder_that_is_a_file(check):
    run = check((FACES, b""), without=[name for name in STUBS if name.startswith(FACES)])
    assert refused(run, f"{FACES} must be a folder")


@pytest.mark.parametrize(
    "info, content, words",
    [
        (member(f"{FACES}/linked.py", stat.S_IFLNK | 0o777), b"/etc/passwd", "linked.py is a link"),
        (member(f"{FACES}/pipe.py", stat.S_IFIFO | 0o644), b"", "neither a file nor a folder"),
        (member(f"{FACES}/folder/", stat.S_IFDIR | 0o755), b"hidden", "neither a file nor a folder"),
        (member(f"{FACES}/a.py", compression=zipfile.ZIP_LZMA), b"1", "compressed in a way"),
        (member(f"{FACES}/a.py"), b"if:", "is no Python: line 1"),
        (member(f"{FACES}/a.py"), b"(" * 10_000, "is no Python"),
        (member(f"{FACES}/a.py"), b"# Here\n    ##### TODO #####\n", "TODO of the skeleton left in line 2"),
        (member(f"{FACES}/a.py"), b'"""(TODO) Build a network."""', "TODO of the skeleton left in line 1"),
        (member(f"{FACES}/a.py"), b'raise NotImplementedError("TODO: here!")', "TODO of the skeleton left in line 1"),
    ],
)
def test_members_of_a_kind_that_should_not_be_in_a_zip(check, info, content, words):
    assert refused(check((info, content)), words)


def test_a_todo_of_ones_own_is_no_mark_of_the_skeleton(check):
    assert check((f"{FACES}/a.py", b"# TODO: make it faster\n")).returncode == 0


def test_every_file_of_the_contract_must_be_there(check):
    for name in [*STUBS, "report.pdf"]:
        assert refused(check(without=[name]), f"{name} is missing")
    assert refused(check(without=[name for name in STUBS if name.startswith(ROLL)]), f"{ROLL} is missing")


def test_zips_that_are_not_whole(check):
    marked = b"# a mark to be found again\n"

    def encrypted(content):
        at = content.rindex(b"PK\1\2") + 8  # the flags of the last member, in the list at the end
        return content[:at] + bytes([content[at] | 1]) + content[at + 1 :]

    assert refused(check((f"{FACES}/a.py", b"1"), change=encrypted), f"{FACES}/a.py is encrypted")
    damage = member(f"{FACES}/a.py"), marked
    run = check(damage, change=lambda content: content.replace(b"found again", b"found agaim"))
    assert refused(run, f"{FACES}/a.py is damaged")
    assert refused(check(change=lambda content: content[:-30]), f"{ID}_lab1.zip is no zip file")
    assert refused(check(change=lambda content: b"no zip"), f"{ID}_lab1.zip is no zip file")
    assert refused(check(name="mine.zip"), "mine.zip must be called ID_lab1.zip")


def test_a_bomb_is_not_unpacked(check, submission, monkeypatch, tmp_path):
    read = []
    original = zipfile.ZipFile.read

    def spied(self, name, *more):
        read.append(name.filename)
        return original(self, name, *more)

    monkeypatch.setattr(zipfile.ZipFile, "read", spied)
    assert refused(check((f"{FACES}/bomb.txt", b"0" * 20_000_000)), "bomb.txt has 20,000,000 bytes")
    assert f"{FACES}/model.py" in read and f"{FACES}/bomb.txt" not in read
    read.clear()
    many = [(f"{FACES}/{i}.txt", b"") for i in range(300)]
    assert refused(check(*many), "zip holds 314 files and folders") and not read
    put(tmp_path, "1_lab1.zip", b"").open("wb").truncate(submission.MAX_ZIP + 1)
    with pytest.raises(ValueError, match="more than"):
        submission.read_zip(tmp_path / "1_lab1.zip")


def test_one_that_says_it_is_small_is_damaged(check):
    """The sizes in the list at the end are not believed either."""
    honest = (5_000_000).to_bytes(4, "little")

    def lying(content):
        start = content.rindex(b"PK\1\2")
        return content[:start] + content[start:].replace(honest, (100).to_bytes(4, "little"), 1)

    assert refused(check((f"{FACES}/bomb.txt", b"0" * 5_000_000), change=lying), f"{FACES}/bomb.txt is damaged")


def test_all_faults_are_named_at_once(make, check, tree):
    for name in ("a.ckpt", "b.pt", "c.txt"):
        put(tree, f"{FACES}/{name}", checkpoint())
    (tree / ROLL / "ddpm.py").unlink()
    (tree / "report/report.pdf").unlink()
    run = make()
    assert run.returncode == 2
    named = [re.search(r"error: (.+?) is ", line)[1] for line in run.stderr.splitlines()]
    planted = [f"{FACES}/{name}" for name in ("a.ckpt", "b.pt", "c.txt")]
    assert sorted(named) == sorted([*planted, f"{ROLL}/ddpm.py", str(tree / "report/report.pdf")])
    run = check(*[(f"{FACES}/{i}.ckpt", b"") for i in range(100)], without=["report.pdf"])
    assert run.returncode == 2 and len(run.stderr.splitlines()) == 20 and "and 82 more" in run.stderr


def test_a_fresh_zip_is_run_where_it_is_unpacked(make, tree, tmp_path):
    note = tmp_path / "note"
    told = f"import os, sys\nprint(os.getcwd(), sys.argv[0], sep='|', file=open({str(note)!r}, 'a'))\n".encode()
    programs = [f"{ROLL}/ddpm_tutorial.py"]
    programs += [f"{FACES}/{name}" for name in ("dataset.py", "train.py", "sampling.py", "fid/measure_fid.py")]
    for name in programs:
        put(tree, name, told + content_of(name))
    run = make(smoke="on")
    assert run.returncode == 0, run.stderr
    assert "its programs run" in run.stdout and "5/5: " in run.stdout
    places, ran = zip(*(line.split("|") for line in note.read_text().splitlines()), strict=True)
    assert [f"{Path(place).name}/{name}" for place, name in zip(places, ran, strict=True)] == programs
    assert not any(Path(place).is_relative_to(tree) or Path(place).exists() for place in places)
    assert (tree / f"{ID}_lab1.zip").exists()


def test_a_check_runs_nothing_unless_asked(program, tree, make, tmp_path):
    note = tmp_path / "note"
    put(tree, f"{FACES}/model.py", b"")
    put(tree, f"{FACES}/train.py", f"open({str(note)!r}, 'w')\n".encode() + content_of(f"{FACES}/train.py"))
    assert make().returncode == 0
    name = tree / f"{ID}_lab1.zip"
    run = program("../report/submission.py", "--check", name)
    assert run.returncode == 0 and "not run" in run.stdout and not note.exists()
    run = program("../report/submission.py", "--check", name, "--smoke", "on")
    assert run.returncode == 0 and "programs run" in run.stdout and note.exists()


@pytest.mark.parametrize(
    "source, words",
    [
        ("print('hello')\nundefined_name", "fails, unpacked and run: NameError: name 'undefined_name'"),
        ("import data.helper", "ModuleNotFoundError: No module named 'data.helper'"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import only_in_the_project", "No module named 'only_in_the_project'"),
        ("", "did not make samples/1.png"),
    ],
)
def test_a_zip_whose_programs_fail_replaces_nothing(make, tree, monkeypatch, tmp_path, source, words):
    put(tree, f"{FACES}/data/helper.py", b"")
    put(tree, "modules/only_in_the_project.py", b"")
    put(tmp_path, "libraries/of_the_system.py", b"")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tree / "modules"), str(tmp_path / "libraries")]))
    put(tree, f"{FACES}/train.py", b"import of_the_system\n" + content_of(f"{FACES}/train.py"))
    old = put(tree, f"{ID}_lab1.zip", b"the old one")
    before = {path.name for path in tree.iterdir()}
    put(tree, f"{FACES}/sampling.py", source.encode())
    run = make(smoke="on")
    assert refused(run, words) and f"{FACES}/sampling.py" in run.stderr
    assert old.read_bytes() == b"the old one" and {path.name for path in tree.iterdir()} == before


def test_a_program_that_does_not_end(submission, tree, monkeypatch):
    put(tree, f"{ROLL}/ddpm_tutorial.py", b"import time; time.sleep(100)")
    monkeypatch.setattr(submission, "SMOKE_SECONDS", 0.5)
    contents, faults = submission.sources(tree, tree / "report/report.pdf")
    assert not faults
    with pytest.raises(ValueError, match=r"ddpm_tutorial\.py did not end"):
        submission.smoke(submission.zipped(contents), tree)


def test_the_smoke_run_suits_the_programs_of_task_2(submission, program, tmp_path):
    """In this process, which spares the imports; `test_the_project_itself...` has processes of its own."""
    for folder, command, leaves in submission.SMOKE:
        if folder == FACES:
            name, *arguments = command.split()
            arguments = [next(tmp_path.glob(each)) if "*" in each else each for each in arguments]
            run = program(name, *arguments)
            assert run.returncode == 0, run.stderr
            assert name.startswith("fid/") or any(tmp_path.glob(leaves))


@pytest.mark.slow
def test_the_project_itself_can_be_handed_in(program, tmp_path):
    report = put(tmp_path, "mine.pdf", PDF)
    run = program("../report/submission.py", "--id", ID, "--report", report, "--out_dir", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert "its programs run" in run.stdout and (tmp_path / "out" / f"{ID}_lab1.zip").exists()
