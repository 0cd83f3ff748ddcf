"""Result tables: one row a measurement, one file a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flashlla.models.checkpoint import replace_file

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

    try:
        return pandas.read_parquet(path)
    except FileNotFoundError as error:
        raise ExperimentError(f"{path} does not exist; flashlla run writes it") from error
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{path} is damaged ({error}); flashlla run writes it anew") from error


def best_setting(table: Table, setting: str, by: Sequence[str], score: str) -> Table:
    """The rows whose ``setting``, a learning rate, say, has the lowest mean ``score`` in its group.

    The score should be one that the result is not judged by: the choice favours it.

    Args:
        by: columns of the groups, within which one value is chosen: mixer and size, say.
    """
    means = table.groupby([*by, setting], as_index=False, sort=False)[score].mean()
    chosen = means.loc[means.groupby(list(by), sort=False)[score].idxmin(), [*by, setting]]
    return table.merge(chosen, on=[*by, setting])
