"""Tables of measurements, as CSV files that a program goes on with when it is called again."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from files import replacing


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table that `write_table` wrote; none where there is no file.

    Raises:
        ValueError: for a file with other columns.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != tuple(columns):
        raise ValueError(f"argument --out: {path} is another table; this one has the columns {', '.join(columns)}")
    return rows


def write_table(path: Path, columns: Sequence[str], rows: Iterable[dict[str, object]]) -> None:
    """The table, whole or as it was."""
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as file:
        file.write(table.getvalue().encode())
