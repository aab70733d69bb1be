"""The curves of a study as an SVG: two metrics against three axes, means with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.study.curves import AXES, METRICS, Axis, Metric, Result, mean_curve, t_interval

# The same rows give the same file: no date in it, and ids that are no random numbers.
STYLE: dict[Any, Any] = {"svg.hashsalt": "videoopd", "svg.fonttype": "none", "font.size": 9.0}
SHOWN: tuple[Metric, ...] = ("miou", "r1_70")
"""A row of plots each."""


def plot(by_arm: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Write the plots of the trained arms; those that train nothing are horizontal lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure, grid = pyplot.subplots(
            len(SHOWN), len(AXES), figsize=(13, 7.5), squeeze=False, layout="constrained"
        )
        for row, metric in enumerate(SHOWN):
            for column, axis in enumerate(AXES):
                _panel(grid[row][column], by_arm, axis, metric)
        handles, labels = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _panel(
    panel: object, by_arm: Mapping[str, Sequence[Result]], axis: Axis, metric: Metric
) -> None:
    from matplotlib.axes import Axes

    assert isinstance(panel, Axes)
    trained = [arm for arm, results in by_arm.items() if results[0].last.round]
    seen: list[float] = []
    for number, arm in enumerate(trained):
        colour = f"C{number % 10}"
        line = "-" if number < 10 else "--"
        curve = mean_curve(by_arm[arm], axis, metric)
        budgets = [b for b, _ in curve]
        means = [i.mean for _, i in curve]
        panel.plot(budgets, means, line, color=colour, label=arm, linewidth=1.4)
        seen += means
        lows = [math.nan if i.low is None else i.low for _, i in curve]
        highs = [math.nan if i.high is None else i.high for _, i in curve]
        panel.fill_between(budgets, lows, highs, color=colour, alpha=0.08, linewidth=0)
    for number, arm in enumerate(a for a in by_arm if a not in trained):
        level = {m: t_interval([getattr(r.last, m) for r in by_arm[arm]]).mean for m in SHOWN}
        # In numbers too, because it may lie far outside: a teacher would push the curves together.
        label = f"{arm} ({', '.join(f'{level[m]:.3f}' for m in SHOWN)})"
        panel.axhline(level[metric], color="0.4", linestyle=(":", "-.")[number % 2], label=label)
        if not trained:
            seen.append(level[metric])
    # The means decide what is shown: the interval of two seeds would push them together too.
    margin = 0.08 * (max(seen) - min(seen) or 0.1)
    panel.set_ylim(min(seen) - margin, max(seen) + margin)
    panel.set_xlim(left=0)
    panel.set_xlabel(AXES[axis])
    panel.set_ylabel(f"eval {METRICS[metric]}")
    panel.grid(alpha=0.25)
