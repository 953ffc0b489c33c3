"""The tables of the benchmarks: the programs print them, and report/doc_tables.py puts them into the README."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Columns = Sequence[tuple[str, str]]  # headers, and format strings of the results' values

SPEED = (
    ("", "{row}"),
    ("images/s", "{images_per_second:.3g}"),
    ("speed-up", "{times_plain:.2f}"),
    ("spread", "{spread:.0%}"),
)
MEMORY = (
    ("images", "{image_resolution}x{image_resolution}"),
    ("batch", "{batch_size}"),
    ("kept, GiB", "{kept_gib:.2f}"),
    ("recomputed, GiB", "{recomputed_gib:.2f}"),
    ("time, recomputed / kept", "{slowdown:.2f}"),
)
PATCHES = (
    ("network", "{network}"),
    ("batch", "{batch_size}"),
    ("patch", "{patch_size}"),
    ("training step, s", "{step_seconds:.2f}"),
    ("speed-up", "{step_speedup:.1f}"),
    ("evaluation, s", "{evaluation_seconds:.2f}"),
    ("speed-up", "{evaluation_speedup:.1f}"),
    ("memory, GiB", "{memory_gib:.2f}"),
)
FID = (
    ("", "{what}"),
    ("pytorch-fid, s", "{pytorch_fid[median]:.3g}"),
    ("here, s", "{ours[median]:.3g}"),
    ("speed-up", "{speedup:.3g}"),
    ("relative difference", "{relative_difference:.1e}"),
)


def table(results: Iterable[Mapping[str, Any]], columns: Columns) -> list[list[str]]:
    """The header and a row for each result."""
    header, cells = zip(*columns, strict=True)
    return [[*header], *([cell.format(**result) for cell in cells] for result in results)]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, whose first row is the header, in Markdown."""
    header, *others = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *others))


def with_speedups(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results of patches.py, with how much faster each is than patches of one pixel."""
    rows = []
    for row in results:
        whole = next(other for other in results if (other["network"], other["patch_size"]) == (row["network"], 1))
        step, evaluation = (whole[name] / row[name] for name in ("step_seconds", "evaluation_seconds"))
        rows.append({**row, "step_speedup": step, "evaluation_speedup": evaluation})
    return rows
