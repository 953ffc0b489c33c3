"""The commands of the READMEs run as they stand, from top to bottom, and the files that they show exist."""

import re
import shlex

import pytest


@pytest.fixture(scope="module")
def root(request):
    return request.config.rootpath


@pytest.fixture(params=("README.md", "report/README.md", "benchmarks/README.md"))
def document(request, root):
    return root / request.param


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(root, text):
    """(folder, words) of every command of the shell blocks, the folder carried from block to block."""
    place, found = root, []
    code = "".join(blocks(text, "sh"))
    assert code and not re.search(r"[<>\[\]]|\.\.\.", code), "it cannot be pasted as it stands"
    for line in code.replace("\\\n", " ").splitlines():
        for command in re.split(r"&&|\|", line.split(" #")[0]):
            words = shlex.split(command)
            if words[:1] == ["cd"]:
                place = (place / words[1]).resolve()
                assert place.is_dir(), command
            elif words:
                found.append((place, [word for word in words if not re.match(r"[A-Z_]+=", word)]))
    assert place == root, "a block does not return to the project's folder"
    return found


def known_flags(path, root, program):
    """The flags of a program."""
    if re.search("2d_plot|swiss_roll", str(path)):  # of Task 1, whose modules have the names of this task's
        return set(re.findall(r'"(--\w+)"', path.read_text(encoding="utf-8")))
    run = program("/".join(["..", *path.relative_to(root).parts]), "--help")
    names = re.findall(r"^ +(-.*?)(?:  |$)", run.stdout, re.MULTILINE)  # such as "--clip_x0, --no-clip_x0"
    return set(re.findall(r"--[\w-]+", " ".join(names)))


def test_every_command_is_a_program_with_the_flags_that_it_has(root, document, program):
    text = document.read_text(encoding="utf-8")
    wanted = {root / "image_diffusion_todo" / name: set() for name in ("train.py", "sampling.py", "dataset.py")}
    wanted[root / "image_diffusion_todo/fid/measure_fid.py"] = set()
    for place, words in commands(root, text):
        if words[:1] == ["python"]:
            path = (place / words[1]).resolve()
            assert path.is_file(), words
            wanted.setdefault(path, set()).update(word for word in words if word.startswith("--"))
    known = {path: known_flags(path, root, program) for path in wanted}
    for path, flags in wanted.items():
        assert flags <= known[path], path
    mentioned = set(re.findall(r"--[a-z][\w-]+", " ".join(re.findall(r"`[^`\n]+`", text))))
    assert mentioned <= {"--nproc_per_node"}.union(*known.values())  # of torchrun


def test_every_target_of_make_is_there(root, document):
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    text = document.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets


def test_every_picture_and_file_that_it_links_to_is_there(document):
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        assert "://" in name or (document.parent / name).is_file(), name


def test_every_source_file_and_function_that_it_names_is_there(root, document):
    paths = [path for path in root.glob("*/**/*.py") if not any(part.startswith(".") for part in path.parts)]
    code = "".join(path.read_text(encoding="utf-8") for path in paths)
    text = document.read_text(encoding="utf-8")
    files = {name.split("/")[-1] for name in re.findall(r"`([\w./]+\.py)`", text)}
    assert files <= {path.name for path in paths}, files - {path.name for path in paths}
    for row in re.findall(r"^\|.*`\w+\.py`.*\|$", text, re.MULTILINE):
        for name in re.findall(r"`([A-Za-z]\w*)`", row):
            assert re.search(rf'(def|class) {name}\b|"{name}"', code), name


def test_a_best_distance_without_its_bounds_is_named(load_report, monkeypatch):
    doc_tables = load_report("doc_tables")
    read = doc_tables.read

    def with_other_number(name):
        return [row | {"value": "1000"} if row.get("key") == "samples" else row for row in read(name)]

    monkeypatch.setattr(doc_tables, "read", with_other_number)
    with pytest.raises(doc_tables.UserError, match="1000 samples"):
        doc_tables.results()


def test_its_tables_are_those_that_doc_tables_makes(document, load_report):
    text = document.read_text(encoding="utf-8")
    assert "<!-- table" in text and load_report("doc_tables").filled(text) == text, "run report/doc_tables.py"
