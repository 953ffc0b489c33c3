"""The report: its listings are the sources, its numbers are the tables', and the PDF that lies there is of today."""

import re
import shutil

import pytest


@pytest.fixture
def build(load_report):
    return load_report("build")


@pytest.fixture
def copied(build, tmp_path, monkeypatch):
    """The program, working on a copy of what the report is made of."""
    for folder in ("report", "2d_plot_diffusion_todo", "image_diffusion_todo"):
        for path in (build.ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".typ", ".csv", ".json", ".png", ".svg") and "results" not in path.parts:
                target = tmp_path / path.relative_to(build.ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.setattr(build, "REPORT", tmp_path / "report")
    return build


def pages(build):
    """Small pictures of all pages."""
    return build.build("", format="png", ppi=40)


def test_listings_are_the_code_without_its_docstrings(build):
    source = '''
class A:
    """What it is."""

    @property
    def one(self):
        """Says one.

        Indented more.
        """
        text = """not a docstring"""
        return 1  # one


def empty():
    """Nothing else."""
'''
    found = build.definitions(source)
    assert set(found) == {"A", "A.one", "empty"}
    assert found["A.one"] == ('@property\ndef one(self):\n    text = """not a docstring"""\n    return 1  # one')
    assert "What it is" not in found["A"] and found["empty"] == "def empty():"


def test_the_pdf_is_made_and_is_of_these_sources(build, program, tmp_path):
    _, codes, mark = build.sources()
    assert len(codes) > 10
    run = program("../report/build.py", "--out", "new.pdf", "--author", "Student 1", "--pages", "pages")
    assert run.returncode == 0, run.stderr
    new = (tmp_path / "new.pdf").read_bytes()
    assert new.startswith(b"%PDF-") and b"Student 1" in new
    numbers = re.findall(rb"/Count (\d+)", new)
    assert len(list((tmp_path / "pages").glob("*.png"))) == max(map(int, numbers)) >= 5
    for pdf in (new, (build.REPORT / "report.pdf").read_bytes()):
        assert set(build.FINGERPRINT.findall(pdf)) == {mark.encode()}, "the report is stale: make report"


def test_a_change_of_any_source_makes_the_report_stale(copied):
    _, codes, mark = copied.sources()
    changes = [
        ("2d_plot_diffusion_todo/ddpm.py", "posterior_variance.sqrt()", "posterior_variance"),
        ("report/report.typ", "Denoising", "Removing noise by"),
        ("report/tables/swiss_roll.json", "0.8", "0.9"),
    ]
    for file, old, new in changes:
        path = copied.ROOT / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        assert copied.sources()[2] != mark
        path.write_text(text)
    assert copied.sources()[2] == mark
    other = next(iter(codes)).split(":")[0]
    (copied.ROOT / other).write_text((copied.ROOT / other).read_text() + "\n# of no listing\n")
    assert copied.sources()[2] == mark


def test_the_numbers_of_the_text_are_those_of_the_tables(copied):
    before = pages(copied)
    tables = [path for path in copied.used_files((copied.REPORT / "report.typ").read_text()) if "tables" in path.parts]
    assert len(tables) >= 5
    for path in tables:
        text = path.read_text()
        other = re.sub(r"\d\.\d{2}", "7.89", text).replace("1142627", "1234567")  # 0.8797 becomes 7.8997
        assert other != text, path
        path.write_text(other)
        after = pages(copied)
        assert len(after) != len(before) or any(a != b for a, b in zip(after, before, strict=True)), path
        path.write_text(text)


def test_a_source_that_does_not_parse_is_named(copied):
    (copied.ROOT / "image_diffusion_todo/model.py").write_text("def broken(:\n")
    with pytest.raises(ValueError, match=r"image_diffusion_todo/model\.py is no Python: .*line 1"):
        copied.sources()


def test_no_measured_number_is_typed_into_the_text(build):
    text = (build.REPORT / "report.typ").read_text()
    numbers = set(re.findall(r"(?<![\w.])\d+\.\d+(?!\d|\.|pt|em|cm|fr|%)", text))
    assert numbers <= {"0.001", "0.008", "0.02", "0.999", "1.5", "1.1"}  # of the lab, the paper and Typst's own
    assert not re.search(r"`[^`\n]*#\w[^`\n]*`", text)  # code in backquotes would be printed, not run
    assert not re.search(r"#[\w.-]+;", text)  # a semicolon ends code, and is not printed


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("figures/schedules.svg", "figures/none.svg", r"shows report/figures/none\.svg, which is not there"),
        ('"DDPMScheduler.add_noise"', '"DDPMScheduler.add"', r"lists DDPMScheduler\.add of .*scheduler\.py, which is"),
        ("#align(center", "#align(nowhere", r"report\.typ: unknown variable: nowhere"),
        ('until: "else:"', 'until: "gone"', r"has no line with gone"),
    ],
)
def test_what_is_missing_is_named(copied, old, new, complaint):
    path = copied.REPORT / "report.typ"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=complaint):
        copied.build("", format="pdf")


def test_what_is_committed_for_the_report_is_small(build):
    files = [path for folder in ("figures", "tables") for path in (build.REPORT / folder).iterdir()]
    assert sum(path.stat().st_size for path in [*files, build.REPORT / "report.pdf"]) < 5_000_000


@pytest.mark.parametrize("rows", [0, 3])
def test_runs_of_ones_own_need_not_be_those_of_the_study(copied, tmp_path, rows):
    """As `figures.py` leaves them after runs of another length, or of some combinations only."""
    table = tmp_path / "report/tables/runs.csv"
    names, *runs = table.read_text().splitlines()
    assert any(",2000," in run for run in runs)
    table.write_text("\n".join([names, *(run.replace(",2000,", ",100000,") for run in runs[3:][:rows])]) + "\n")
    assert len(pages(copied)) > 5
