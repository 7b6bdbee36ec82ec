"""What a person sees while a run goes on: a progress bar on a terminal, plain lines elsewhere; all on standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Console:
    """Lines and one progress bar. ``say`` prints a line and hands it to ``log``; ``progress`` shows how far a step is."""

    def __init__(self, log: Callable[[str], None]) -> None:
        from rich.console import Console as Rich

        self.rich = Rich(stderr=True, highlight=False, soft_wrap=True)
        self.log = log
        self.began = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._said = 0.0

    def say(self, text: str, style: str = "") -> None:
        stamp = f"{time.monotonic() - self.began:6.1f} s  "
        self.rich.print(stamp + text, style=style or None, markup=False)
        self.log(text)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}", "yellow")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show the progress of one step while the block runs."""
        self._said = time.monotonic()
        if not self.rich.is_terminal:
            yield
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.rich, transient=True) as self._bar:
            self._task = self._bar.add_task(name, total=None)
            try:
                yield
            finally:
                self._bar = None

    def progress(self, name: str, done: int, total: int, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=f"{name}  {note}".rstrip())
        elif time.monotonic() - self._said >= 10:
            self._said = time.monotonic()
            self.say(f"{name}: {done} of {total}  {note}".rstrip())


def table(headings: list[str], rows: list[list[str]]) -> None:
    """Print a table on standard output; one that is too wide in several parts, each with the first column."""
    from rich.console import Console as Rich
    from rich.table import Table

    out = Rich(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)
    widths = [max(map(len, column)) + 2 for column in zip(headings, *rows, strict=True)]
    for i, columns in enumerate(parts(widths, out.width + 2)):
        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            drawn.add_column(headings[column], justify="right" if column else "left", no_wrap=True)
        for row in rows:
            drawn.add_row(*(row[column] for column in columns))
        out.print(*([""] if i else []), drawn, sep="\n")


def parts(widths: list[int], room: int) -> list[list[int]]:
    """Columns in parts that are no wider than ``room`` (or of one column), each beginning with the first."""
    found: list[list[int]] = []
    left = -1
    for column in range(1, len(widths)):
        if widths[column] > left or not found:
            found.append([0])
            left = room - widths[0]
        found[-1].append(column)
        left -= widths[column]
    return found or [[0]]
