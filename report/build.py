"""Build report/report.pdf from report.typ, the committed figures and tables, and the source files.

    python report/build.py                                # or: make report
    python report/build.py --author "412551014" --pages pages    # with a name, and each page as a picture

Needs the Typst package (requirements-dev.txt), which brings its own fonts: the same sources give the same pages
everywhere. Listings are cut from the source files, by the name of the function.
"""

import ast
import hashlib
import json
import re
import textwrap
from pathlib import Path

import common
from cli import ArgumentParser, UserError, exit_on_user_error, writable_file, writable_folder
from common import REPORT, ROOT

FINGERPRINT = re.compile(rb"sources ([0-9a-f]{64})")


def definitions(path: Path) -> dict[str, str]:
    """The functions and classes of a Python file by dotted name, without docstrings and indentation."""
    source = path.read_text(encoding="utf-8")
    lines, found = source.split("\n"), {}

    def visit(nodes: list[ast.stmt], prefix: str) -> None:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                kept = lines[first - 1 : node.end_lineno]
                if ast.get_docstring(node) is not None:
                    del kept[node.body[0].lineno - first : node.body[0].end_lineno - first + 1]
                found[prefix + node.name] = textwrap.dedent("\n".join(kept)).strip()
                visit(node.body, f"{prefix}{node.name}.")

    visit(ast.parse(source, filename=str(path)).body, "")
    return found


def listings(text: str) -> dict[str, dict[str, str]]:
    """The file and the code of every function that a Typst source lists, by "folder:function"; each is in one file."""
    names = re.findall(r'#listing\("([^"]+)", "([^"]+)"\)', text)
    files = {folder: sorted((ROOT / folder).glob("*.py")) for folder in sorted({folder for folder, _ in names})}
    code = {folder: {path.name: definitions(path) for path in paths} for folder, paths in files.items()}
    found = {}
    for folder, name in names:
        places = [file for file, functions in code[folder].items() if name in functions]
        if len(places) != 1:
            raise UserError(f"report.typ lists {name} of {folder}, which is in {' and '.join(places) or 'no file'}")
        found[f"{folder}:{name}"] = {"file": f"{folder}/{places[0]}", "code": code[folder][places[0]][name]}
    return found


def used_files(text: str) -> list[Path]:
    """The figures and tables that a Typst source names, below report/."""
    return [REPORT / name for name in sorted(set(re.findall(r'"((?:figures|tables)/[^"]+)"', text)))]


def sources() -> dict[str, str]:
    """The inputs of report.typ: its listings, and a hash of everything that it is built from (kept in the PDF)."""
    text = (REPORT / "report.typ").read_text(encoding="utf-8")
    codes = json.dumps(listings(text), sort_keys=True)
    parts = [text.encode(), codes.encode(), *(path.read_bytes() for path in used_files(text))]
    fingerprint = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    return {"listings": codes, "fingerprint": fingerprint}


def build(author: str = "", query: str | None = None, **settings: object) -> bytes | list[bytes] | str:
    """The report as PDF or in another format of Typst (a list of pages where there are several); or, with `query`, the
    value of the metadata with this label, as JSON.

    Raises:
        UserError: if a listed function is missing, or Typst refuses the text.
        OSError: if a figure or table is missing.
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
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--author", default="", metavar="TEXT", help="who hands it in, shown below the title")
    add("--out", type=writable_file, default=REPORT / "report.pdf", metavar="FILE", help="(default: report/report.pdf)")
    add("--pages", type=writable_folder, metavar="DIR", help="also write each page as a picture")
    args = parser.parse_args()
    with exit_on_user_error():
        common.write(args.out, build(args.author, format="pdf"))
        print(args.out)
        if args.pages:
            for number, picture in enumerate(build(args.author, format="png", ppi=110), start=1):
                common.write(args.pages / f"{number:02d}.png", picture)


if __name__ == "__main__":
    main()
