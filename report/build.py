"""Build report/report.pdf from report.typ, the committed figures and tables, and the source files.

    python report/build.py                                # or: make report
    python report/build.py --author "412551014" --pages pages    # with a name, and each page as a picture

Needs the Typst package (requirements-dev.txt), which brings its own fonts: the same sources give the same pages
everywhere. Listings are cut from the source files, by the name of the function.
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
from cli import ArgumentParser, UserError, exit_on_user_error, writable_file

FINGERPRINT = re.compile(rb"sources ([0-9a-f]{64})")


def definitions(source: str) -> dict[str, str]:
    """The functions and classes of a Python source by dotted name, without docstrings and indentation."""
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


def listings(text: str) -> dict[str, dict[str, str]]:
    """The file and the code of every function that a Typst source lists, by "folder:function".

    Raises:
        UserError: when not exactly one file of the folder defines it, or a file does not parse.
    """
    found: dict[str, list[dict[str, str]]] = {}
    names = re.findall(r'#listing\("([^"]+)", "([^"]+)"\)', text)
    for path in sorted(path for folder in {folder for folder, _ in names} for path in (ROOT / folder).glob("*.py")):
        folder, file = path.parent.name, path.relative_to(ROOT).as_posix()
        try:
            for name, code in definitions(path.read_text(encoding="utf-8")).items():
                found.setdefault(f"{folder}:{name}", []).append({"file": file, "code": code})
        except SyntaxError as error:
            raise UserError(f"{file} is no Python: {error}") from None
    for folder, name in names:
        files = [each["file"] for each in found.get(f"{folder}:{name}", [])]
        if len(files) != 1:
            raise UserError(f"report.typ lists {name} of {folder}, which is in {' and '.join(files) or 'no file'}")
    return {f"{folder}:{name}": found[f"{folder}:{name}"][0] for folder, name in names}


def used_files(text: str) -> list[Path]:
    """The figures and tables that a Typst source names, below report/.

    Raises:
        UserError: when one does not exist.
    """
    paths = [REPORT / name for name in sorted(set(re.findall(r'"((?:figures|tables)/[^"]+)"', text)))]
    for path in paths:
        if not path.is_file():
            raise UserError(f"report.typ shows {path.relative_to(ROOT)}, which does not exist")
    return paths


def sources() -> dict[str, str]:
    """The inputs of report.typ: its listings, and a hash of everything that it is built from (kept in the PDF).

    Raises:
        UserError: when something that it names does not exist.
    """
    text = (REPORT / "report.typ").read_text(encoding="utf-8")
    codes = json.dumps(listings(text), sort_keys=True)
    parts = [text.encode(), codes.encode(), *(path.read_bytes() for path in used_files(text))]
    fingerprint = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    return {"listings": codes, "fingerprint": fingerprint}


def build(author: str = "", query: str | None = None, **settings: object) -> bytes | list[bytes] | str:
    """The report as PDF or in another format of Typst (a list of pages where there are several); or, with `query`, the
    value of the metadata with this label, as JSON.

    Raises:
        UserError: when something is missing, or Typst refuses the text.
    """
    try:
        import typst
    except ImportError:
        raise UserError("Typst is missing: pip install -r requirements-dev.txt") from None
    settings |= {"root": ROOT, "ignore_system_fonts": True, "sys_inputs": {"author": author, **sources()}}
    try:
        if query:
            return typst.query(REPORT / "report.typ", query, field="value", one=True, **settings)
        return typst.compile(REPORT / "report.typ", timestamp=0, **settings)
    except typst.TypstError as error:
        raise UserError(f"report.typ: {error}") from None


def main() -> None:
    """The program."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--author", default="", metavar="TEXT", help="who hands it in, shown below the title")
    add("--out", type=writable_file, default=REPORT / "report.pdf", metavar="FILE", help="(default: report/report.pdf)")
    add("--pages", type=Path, metavar="DIR", help="also write each page as a picture")
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
