"""Tables of measurements, as CSV files that a program goes on with when it is called again."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from atomic import atomic_write


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table that `write_table` wrote; none where there is no file.

    Raises:
        ValueError: for a file with other columns, or one that is no table at all.
    """
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            names, *rows = csv.reader(file)
        if names != list(columns) or any(len(row) != len(columns) for row in rows):
            raise ValueError
    except (ValueError, csv.Error):
        raise ValueError(f"{path} is not a table of this program, with the columns {', '.join(columns)}") from None
    return [dict(zip(columns, row, strict=True)) for row in rows]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[dict[str, object]]) -> None:
    """The table, whole or as it was.

    Raises:
        OSError: when it cannot be written.
    """
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write(table.getvalue().encode())
