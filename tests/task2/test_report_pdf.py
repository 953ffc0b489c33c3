"""The report: its listings are the sources, its numbers the tables', and the committed PDF is up to date."""

import re
import shutil

import pytest


@pytest.fixture
def build(load_report):
    return load_report("build")


@pytest.fixture
def copied(build, tmp_path, monkeypatch):
    """The program, working on a copy of what the report is made of."""
    folders = ("report", "report/figures", "report/tables", "2d_plot_diffusion_todo", "image_diffusion_todo")
    for folder in folders:
        (tmp_path / folder).mkdir()
        for path in (build.ROOT / folder).iterdir():
            if path.suffix in (".py", ".typ", ".csv", ".json", ".txt", ".png", ".svg"):
                shutil.copy(path, tmp_path / folder)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "REPORT", tmp_path / "report")
    return build


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_listings_are_the_code_without_its_docstrings(build, tmp_path):
    (tmp_path / "a.py").write_text('''
class A:
    """What it is."""

    @property
    def one(self):
        """One.

        Indented more.
        """
        text = """not a docstring"""
        return 1  # one


def empty():
    """Nothing else."""
''')
    found = build.definitions(tmp_path / "a.py")
    assert set(found) == {"A", "A.one", "empty"}
    assert found["A.one"] == '@property\ndef one(self):\n    text = """not a docstring"""\n    return 1  # one'
    assert "What it is" not in found["A"] and found["empty"] == "def empty():"


def test_the_pdf_is_made_and_the_committed_one_is_up_to_date(build, program, tmp_path):
    run = program("../report/build.py", "--out", "new.pdf", "--author", "Student 1", "--pages", "pages")
    assert run.returncode == 0, run.stderr
    new = (tmp_path / "new.pdf").read_bytes()
    assert new.startswith(b"%PDF-") and b"Student 1" in new
    numbers = re.findall(rb"/Count (\d+)", new)
    assert len(list((tmp_path / "pages").glob("*.png"))) == max(map(int, numbers)) >= 5
    for pdf in (new, (build.REPORT / "report.pdf").read_bytes()):
        assert set(build.FINGERPRINT.findall(pdf)) == {build.sources()["fingerprint"].encode()}, "run `make report`"


def test_the_fingerprint_depends_on_every_source_that_is_shown_and_on_no_other(copied):
    fingerprints = [copied.sources()["fingerprint"]]
    with (copied.ROOT / "image_diffusion_todo/model.py").open("a") as file:
        file.write("\n# of no listing\n")
    assert copied.sources()["fingerprint"] == fingerprints[0]
    for file, old, new in [
        ("2d_plot_diffusion_todo/ddpm.py", "posterior_variance.sqrt()", "posterior_variance"),
        ("report/tables/swiss_roll.json", "0.8", "0.9"),
    ]:
        change(copied.ROOT / file, old, new)
        fingerprints.append(copied.sources()["fingerprint"])
    assert len({*fingerprints}) == 3


def test_the_numbers_of_the_text_are_those_of_the_tables(copied):
    before = copied.build(format="svg")
    tables = [path for path in copied.used_files((copied.REPORT / "report.typ").read_text()) if "tables" in path.parts]
    assert len(tables) >= 5
    for path in tables:
        text = path.read_text()
        other = re.sub(r"\d\.\d{2}", "7.89", text).replace("1147820", "1234567")  # 0.8797 becomes 7.8997
        assert other != text, path
        path.write_text(other)
        assert copied.build(format="svg") != before, path
        path.write_text(text)


def test_no_measured_number_is_typed_into_the_text(build):
    text = (build.REPORT / "report.typ").read_text()
    numbers = set(re.findall(r"(?<![\w.])\d+\.\d+(?!\d|\.|pt|em|cm|fr|%)", text))
    assert numbers <= {"0.001", "0.008", "0.02", "0.999", "1.5", "1.1"}  # of the lab, the paper and Typst's own
    assert not re.search(r"`[^`\n]*#\w[^`\n]*`", text)  # code in backquotes would be printed, not run
    assert not re.search(r"^[^/#\s].*#[\w.-]+(\([^)]*\)+)?; ", text, re.MULTILINE)  # ends code, and is not printed


@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("report/report.typ", "figures/schedules.svg", "figures/none.svg", r"figures/none\.svg"),
        ("report/report.typ", '"DDPMScheduler.add_noise"', '"DDPMScheduler.add"', r"DDPMScheduler\.add of image_diff"),
        ("report/report.typ", "#align(center", "#align(nowhere", "report.typ: .*nowhere"),
    ],
)
def test_what_is_missing_or_broken_is_named(copied, file, old, new, complaint):
    change(copied.ROOT / file, old, new)
    with pytest.raises((copied.UserError, OSError), match=complaint):
        copied.build(format="pdf")


@pytest.mark.parametrize("rows", [0, 3])
def test_runs_of_ones_own_need_not_be_those_of_the_study(copied, rows):
    """As `figures.py` leaves them after runs of another length, or of some combinations only."""
    table = copied.REPORT / "tables/runs.csv"
    names, *runs = table.read_text().splitlines()
    assert any(",6000," in run for run in runs)
    table.write_text("\n".join([names, *(run.replace(",6000,", ",100000,") for run in runs[3:][:rows])]) + "\n")
    assert len(copied.build(format="svg")) > 5
