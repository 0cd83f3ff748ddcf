"""A progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(steps: int, done: int, shown: bool) -> Iterator[Callable[[int, float], None]]:
    """A bar of rich on a terminal; what is yielded takes the steps done and the loss.

    Nothing is shown where rich is missing or there is no terminal.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        shown = False
    if not shown or not (console := Console(stderr=True)).is_terminal:
        yield lambda step, loss: None
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, refresh_per_second=2) as bar:
        task = bar.add_task("training", total=steps, completed=done, state="")
        yield lambda step, loss: bar.update(task, completed=step, state=f"loss {loss:.4f}")
