"""What the README says can be done, and what it shows, is there."""

import re
import shlex

import pytest

INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
INLINE = re.compile(r"`(python [^`]+)`")


@pytest.fixture(scope="module")
def root(request):
    return request.config.rootpath


@pytest.fixture(scope="module")
def text(root):
    return (root / "README.md").read_text(encoding="utf-8")


def commands(root, text):
    """(folder, command) of each command of Python or torchrun; the folder is None where no `cd` came before."""
    found = []
    for block in INDENTED.findall(text):
        place = None
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.split(r"&&|;", re.sub(r"  #.*", "", line)):
                words = command.split()
                if words[:1] == ["cd"]:
                    place = root if words[1] == ".." else (place or root) / words[1]
                elif words[:1] == ["python"] or "torchrun" in words:
                    found.append((place, command))
    return found + [(None, command) for command in INLINE.findall(text)]


def program_of(root, place, words):
    """The file that a command runs, from its folder, or else from the top or inside a task's folder."""
    name = next((word for word in words if word.endswith(".py")), None)
    if name is None:
        return None
    places = [place] if place else [root, root / "image_diffusion_todo", root / "2d_plot_diffusion_todo"]
    paths = [path / name for path in places if (path / name).is_file()]
    assert paths, f"the README runs {name}, which is not there"
    return paths[0]


def test_every_command_names_a_program_and_flags_that_it_has(root, text, program, task_folder):
    wanted = {}
    for place, command in commands(root, text):
        words = [word.strip("[]") for word in shlex.split(command.replace("...", " "))]
        path = program_of(root, place, words)
        if path:
            flags = {word for word in words if word.startswith("--") and word != "--nproc_per_node"}
            wanted[path] = wanted.get(path, set()) | flags
    assert len(wanted) >= 12
    for path, flags in wanted.items():
        known = path.read_text(encoding="utf-8")
        if "chamferdist" not in known:  # a program of Task 1, whose modules have the names of this task's
            known = program("/".join(["..", *path.relative_to(root).parts]), "--help").stdout
        assert flags <= set(re.findall(r"--\w+", known)), (path.name, flags)


def test_every_picture_and_file_that_it_links_to_is_there(root, text):
    linked = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [name for name in linked if "://" not in name]
    assert len(local) > 10
    for name in local:
        assert (root / name).is_file(), name
