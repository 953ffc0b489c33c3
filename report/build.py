"""Build report/report.pdf from report.typ, the committed figures and tables, and the source files themselves.

    python report/build.py                                # or: make report
    python report/build.py --author "412551014" --pages pages   # with a name on it, and each page as a picture

Needs Typst's Python package (requirements-dev.txt), which brings its own fonts, so the same sources give the same
pages everywhere. Code listings are cut out of the source files while building: they cannot go stale.
"""

import argparse
import ast
import hashlib
import json
import re
import sys
import textwrap
from pathlib import Path

REPORT = Path(__file__).resolve().parent
ROOT = REPORT.parent
sys.path.insert(0, str(ROOT / "image_diffusion_todo"))

from atomic import atomic_write
from cli import ArgumentParser, exit_on_user_error, writable_file

FINGERPRINT = re.compile(rb"sources ([0-9a-f]{64})")


def definitions(source: str) -> dict[str, str]:
    """The functions and classes of a Python source, by dotted name, without docstrings and indentation."""
    lines = source.splitlines()
    found = {}

    def visit(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            docstring = node.body[0] if ast.get_docstring(node) is not None else None
            skipped = range(docstring.lineno, docstring.end_lineno + 1) if docstring else ()
            kept = [lines[i - 1] for i in range(first, node.end_lineno + 1) if i not in skipped]
            found[prefix + node.name] = textwrap.dedent("\n".join(kept)).strip()
            visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(source).body, "")
    return found


def listings(text: str) -> dict[str, str]:
    """The code of every `listing("file.py", "name")` that a Typst source names, by "file.py:name".

    Raises:
        ValueError: when there is no such file or definition, or the file does not parse.
    """
    codes = {}
    for file, name in re.findall(r'listing\(\s*"([^"]+)",\s*"([^"]+)"', text):
        try:
            codes[f"{file}:{name}"] = definitions((ROOT / file).read_text(encoding="utf-8"))[name]
        except SyntaxError as error:
            raise ValueError(f"{file} is no Python: {error}") from None
        except (OSError, KeyError):
            raise ValueError(f"report.typ lists {name} of {file}, which is not there") from None
    return codes


def used_files(text: str) -> list[Path]:
    """The figures and tables that a Typst source names, below report/.

    Raises:
        ValueError: when one is not there.
    """
    paths = [REPORT / name for name in sorted(set(re.findall(r'"((?:figures|tables)/[^"]+)"', text)))]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"report.typ shows {path.relative_to(ROOT)}, which is not there")
    return paths


def fingerprint(text: str, codes: dict[str, str], files: list[Path]) -> str:
    """A hash of all that the report is made of; it stands in the PDF, so that a stale one can be told."""
    parts = [text.encode(), json.dumps(codes, sort_keys=True).encode(), *(path.read_bytes() for path in files)]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def sources() -> tuple[str, dict[str, str], str]:
    """The report's text, its listings, and the fingerprint of everything.

    Raises:
        ValueError: when something is missing that the text names.
    """
    text = (REPORT / "report.typ").read_text(encoding="utf-8")
    codes = listings(text)
    return text, codes, fingerprint(text, codes, used_files(text))


def build(author: str, **how: object) -> bytes | list[bytes]:
    """The report, as PDF or in another of Typst's formats (a list of pages where there are several).

    Raises:
        ValueError: when something is missing, or Typst refuses the text.
    """
    try:
        import typst
    except ImportError:
        raise ValueError("Typst is missing: pip install -r requirements-dev.txt") from None
    _, codes, mark = sources()
    inputs = {"listings": json.dumps(codes), "fingerprint": mark, "author": author}
    try:
        return typst.compile(
            REPORT / "report.typ", root=ROOT, ignore_system_fonts=True, sys_inputs=inputs, timestamp=0, **how
        )
    except typst.TypstError as error:
        raise ValueError(f"report.typ: {error}") from None


def main() -> None:
    """The program."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--author", default="", metavar="TEXT", help="who hands it in, shown below the title")
    add("--out", type=writable_file, default=REPORT / "report.pdf", metavar="FILE", help="(default: report/report.pdf)")
    add("--pages", type=Path, metavar="DIR", help="also write each page as a picture, to look at")
    args = parser.parse_args()
    with exit_on_user_error():
        pdf = build(args.author, format="pdf")
        with atomic_write(args.out) as file:
            file.write(pdf)
        print(args.out)
        if args.pages:
            args.pages.mkdir(parents=True, exist_ok=True)
            for number, picture in enumerate(build(args.author, format="png", ppi=110), start=1):
                (args.pages / f"{number:02d}.png").write_bytes(picture)


if __name__ == "__main__":
    main()
