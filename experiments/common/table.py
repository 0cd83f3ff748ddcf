"""Result tables: one row a measurement, one file a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flashlla._files import replace_file

from .experiment import ExperimentError

if TYPE_CHECKING:
    import pandas

    Table = pandas.DataFrame
else:
    Table = "pandas.DataFrame"


def write_table(table: Table, path: Path) -> None:
    """Write ``table`` as Parquet, in place of what is there."""
    replace_file(path, lambda aside: table.to_parquet(aside, index=False, compression="zstd"))


def read_table(path: Path) -> Table:
    """The table that :func:`write_table` wrote.

    Raises:
        ExperimentError: there is none, or it is damaged.
    """
    import pandas

    if not path.is_file():
        raise ExperimentError(f"{path} does not exist; flashlla run writes it")
    try:
        with pandas.option_context("mode.string_storage", "python"):  # twice as fast to compare
            return pandas.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{path} is damaged ({error}); flashlla run writes it anew") from error


def numbers_as_text(table: Table) -> Table:
    """A small table of numbers as strings, empty where there is none."""
    return table.map(lambda number: "" if number != number else f"{number:.3g}")


def as_text(table: Table) -> list[list[str]]:
    """The cells of a small table as readers see them, row by row."""
    rows = table.itertuples(index=False)
    return [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
