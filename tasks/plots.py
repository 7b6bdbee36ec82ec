"""Pictures of training, as PNG files of 900 pixels: the curves of one preference step, and a comparison of several.

Drawn with matplotlib (which comes with MLflow) on figures of their own: no window, no state shared between pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.curves import Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 9.0, 100  # inches and dots per inch: 900 pixels
# Told apart by people who see red and green alike, and in grey (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#000000")
STYLES = ("-", "--", ":")  # where there are more than that
GREY = "#7F7F7F"
SMOOTHED = 60  # steps from which on single steps are drawn pale behind a running mean
_STYLE: Any = {"font.size": 11, "axes.titlesize": 12, "axes.spines.top": False, "axes.spines.right": False,
          "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False}  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """One model of a comparison. ``margin`` (nats) and ``accuracy``: (value, standard error or None) on the held-out
    pairs, None where they are not known; ``curves`` where it was trained here."""

    label: str
    margin: tuple[float, float | None] | None
    accuracy: tuple[float, float | None] | None
    curves: Curves | None = None


def draw_preference(curves: Curves, path: Path, title: str = "preference optimization") -> None:
    """Rewards and margin over steps, and below them accuracy, or log-probabilities where no two completions compare."""
    with _figure(path, 6.4) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        figure.suptitle(title)
        rewards = {"chosen": "rewards/chosen", "rejected": "rewards/rejected", "margin": "rewards/margins"}
        for colour, (name, metric) in zip(COLOURS, rewards.items(), strict=False):
            _line(above, curves, metric, name, colour)
        above.axhline(0, color=GREY, linewidth=1, zorder=0)
        above.set_ylabel("implicit reward\n(scaled nats)")
        if curves.points("rewards/accuracies")[0]:
            _line(below, curves, "rewards/accuracies", "chosen above rejected", COLOURS[2])
            _share(below, "reward accuracy")
        else:
            _line(below, curves, "logps/chosen", "chosen", COLOURS[0])
            _line(below, curves, "logps/rejected", "rejected", COLOURS[1])
            below.set_ylabel("log-probability\n(nats)")
        below.set_xlabel("optimiser step")
        for axes in (above, below):
            _legend(axes)
        _whole_steps(below)


def draw_comparison(shown: Sequence[Shown], path: Path, title: str, pairs: int) -> None:
    """Held-out margin and accuracy of every model (with one standard error to each side) over ``pairs`` pairs; below
    them the training curves, in units that mean the same for every loss."""
    with _figure(path, 3.6 + 0.32 * len(shown) + 2.6) as figure:
        (margins, accuracies), (growing, learning) = figure.subplots(2, 2, height_ratios=(1.0 + 0.32 * len(shown), 3.4))
        figure.suptitle(title)
        looks = _looks(shown)
        _dots(margins, shown, {s.label: s.margin for s in shown}, looks)
        _dots(accuracies, shown, {s.label: s.accuracy for s in shown}, looks)
        margins.set_title(f"held-out margin, {pairs:,} pairs")
        margins.set_xlabel("log p(chosen) - log p(rejected), nats")
        margins.axvline(0, color=GREY, linewidth=1, zorder=0)
        accuracies.set_title(f"held-out accuracy, {pairs:,} pairs")
        accuracies.set_xlabel("share of pairs with chosen above rejected")
        accuracies.tick_params(labelleft=False)
        trained = [s for s in shown if s.curves is not None]
        for one in trained:
            assert one.curves is not None
            _line(growing, _difference(one.curves), "margin", one.label, *looks[one.label])
            _line(learning, one.curves, "rewards/accuracies", one.label, *looks[one.label])
        growing.set_title("training: margin")
        growing.set_ylabel("log p(chosen) - log p(rejected), nats")
        learning.set_title("training: reward accuracy\n(relative to the reference, if the loss has one)")
        _share(learning, "")
        for axes in (growing, learning):
            axes.set_xlabel("optimiser step")
            _whole_steps(axes)
        columns = max(1, min(4, 100 // (8 + max((len(one.label) for one in trained), default=0))))
        if growing.lines:
            figure.legend(*growing.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


# ------------------------------------------------------------------------------------------------ parts of a picture


class _figure:
    """A figure that is written to ``path`` as the block ends: there whole or not at all."""

    def __init__(self, path: Path, height: float) -> None:
        self.path, self.height = path, height

    def __enter__(self) -> "Figure":
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        self.style = rc_context(_STYLE)
        self.style.__enter__()
        self.figure = Figure(figsize=(WIDTH, self.height), dpi=DPI, layout="constrained")
        return self.figure

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if error is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                partial = self.path.with_name(f".partial-{self.path.name}")
                # Without the version of matplotlib, so that the same curves give the same file.
                self.figure.savefig(partial, format="png", metadata={"Software": None})
                partial.replace(self.path)
        finally:
            self.style.__exit__(kind, error, trace)


def _line(axes: "Axes", curves: Curves, metric: str, label: str, colour: str, style: str = "-") -> None:
    steps, values = curves.points(metric)
    if not steps:
        return
    if len(steps) < SMOOTHED:
        marker = "o" if len(steps) < 15 else None
        axes.plot(steps, values, style, color=colour, label=label, linewidth=1.8, marker=marker, markersize=4)
        return
    axes.plot(steps, values, style, color=colour, linewidth=0.8, alpha=0.25)
    axes.plot(steps, _running_mean(values, len(values) // 40), style, color=colour, label=label, linewidth=2)


def _running_mean(values: Sequence[float], reach: int) -> list[float]:
    """The mean of every value and up to ``reach`` neighbours on each side of it."""
    sums = [0.0, *accumulate(values)]
    ends = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in ends]


def _difference(curves: Curves) -> Curves:
    """Mean log p(chosen) - log p(rejected) of every step's rows: in nats, whatever the loss calls a reward."""
    both = zip(curves.values.get("logps/chosen", ()), curves.values.get("logps/rejected", ()), strict=True)
    return Curves(curves.steps, {"margin": tuple(None if a is None or b is None else a - b for a, b in both)})


def _dots(
    axes: "Axes",
    shown: Sequence[Shown],
    values: Mapping[str, tuple[float, float | None] | None],
    looks: Mapping[str, tuple[str, str]],
) -> None:
    """A dot and its standard error per model, the first one on top."""
    for place, one in enumerate(shown):
        found = values[one.label]
        if found is not None:
            value, error = found
            axes.errorbar(value, place, xerr=error or 0.0, fmt="o", color=looks[one.label][0], capsize=4, markersize=7)
    axes.set_yticks(range(len(shown)), [one.label for one in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.margins(x=0.1)


def _looks(shown: Sequence[Shown]) -> dict[str, tuple[str, str]]:
    """(colour, line style) of every model that was trained here; the others are grey."""
    trained = [one.label for one in shown if one.curves is not None]
    chosen = {label: (COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % 3]) for i, label in enumerate(trained)}
    return {one.label: chosen.get(one.label, (GREY, "-")) for one in shown}


def _share(axes: "Axes", label: str) -> None:
    """An axis for shares, with chance marked."""
    axes.set_ylim(-0.03, 1.03)
    axes.axhline(0.5, color=GREY, linewidth=1, linestyle=":", zorder=0)
    axes.set_ylabel(label)


def _legend(axes: "Axes") -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")


def _whole_steps(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
