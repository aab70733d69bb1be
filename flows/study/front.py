"""The picture of a study with several conditions: few arms, a panel a condition, read in seconds.

Every arm has its name at its line's end, in its own colour. The ground is transparent, and all
colours stand out on a white one and on a dark one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.study.curves import METRICS, UNITS, Axis, Metric, Result, mean_curve, t_interval
from flows.study.evidence import Evidence
from flows.study.plot import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#d1602f", "#b5477f", "#2f7fd6", "#1d9a6c", "#8a6fd1", "#a07a1c")
"""Of the arms that train, in the order of `front`."""
INK = "#7b828c"
"""Of everything else."""
AXIS: Axis = "steps"
METRIC: Metric = "miou"
LINE_HEIGHT = 0.055
"""Of a name, as a share of a panel's height."""


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights near the wanted ones and in their order, of which no two are nearer than `gap`.

    Neighbours that are too near become a block, which stands where its members' mean is.

    >>> spread([0.0, 1.0, 1.0], 1.0)
    [-0.3333333333333333, 0.6666666666666667, 1.6666666666666667]
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, list[int]]] = []  # middle, members from below
    for index in order:
        block = (wanted[index], [index])
        while blocks and _top(blocks[-1], gap) > block[0] - gap * len(block[1]) / 2 + 1e-12:
            members = [*blocks.pop()[1], *block[1]]
            block = (sum(wanted[i] for i in members) / len(members), members)
        blocks.append(block)
    heights = dict.fromkeys(order, 0.0)
    for middle, members in blocks:
        for place, index in enumerate(members):
            heights[index] = middle + gap * (place - (len(members) - 1) / 2)
    return [heights[i] for i in range(len(wanted))]


def _top(block: tuple[float, list[int]], gap: float) -> float:
    return block[0] + gap * len(block[1]) / 2


def draw_front(conditions: Sequence[Evidence], path: Path) -> None:
    """Write the SVG: of each condition the arms of `front`, mean over seeds with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style = STYLE | {
        "font.size": 11.0,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
        "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False,
        "axes.spines.right": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure, panels = pyplot.subplots(
            1, len(conditions), figsize=(5.2 * len(conditions), 4.2), sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        shown = [_shown(evidence) for evidence in conditions]
        low, high = _limits([results for arms in shown for results in arms.values()])
        for panel, evidence, arms in zip(panels[0], conditions, shown, strict=True):
            panel.set_ylim(low, high)
            panel.set_title(evidence.plan.title)
            panel.set_xlabel(UNITS[AXIS])
            _draw(panel, arms, evidence.plan.study.front, high - low)
        panels[0][0].set_ylabel(f"eval {METRICS[METRIC]}")
        figure.savefig(path, metadata={"Date": None}, transparent=True)
        pyplot.close(figure)


def _shown(evidence: Evidence) -> dict[str, list[Result]]:
    front = evidence.plan.study.front
    return {arm: evidence.by_arm[arm] for arm in front if arm in evidence.by_arm}


def _limits(arms: Sequence[Sequence[Result]]) -> tuple[float, float]:
    """Of the heights that all panels share: the means decide, with room for their names."""
    means = [i.mean for results in arms for _, i in mean_curve(results, AXIS, METRIC)]
    margin = 0.1 * (max(means) - min(means) or 0.1)
    return min(means) - margin, max(means) + margin


def _draw(
    panel: Axes, arms: Mapping[str, Sequence[Result]], front: Mapping[str, str], height: float
) -> None:
    """Lines, bands, and a name right of each line's end."""
    end = max((r.last.steps for results in arms.values() for r in results), default=0) or 1
    trained = [arm for arm in front if arm in arms and arms[arm][0].last.round]
    colours = dict(zip(trained, COLOURS, strict=False))
    for arm, results in arms.items():
        if arm in trained:
            curve = mean_curve(results, AXIS, METRIC)
            steps, means = [b for b, _ in curve], [i.mean for _, i in curve]
            panel.plot(steps, means, color=colours[arm], linewidth=2.2)
            lows, highs = (
                [math.nan if bound is None else bound for bound in of_all]
                for of_all in ([i.low for _, i in curve], [i.high for _, i in curve])
            )
            panel.fill_between(steps, lows, highs, color=colours[arm], alpha=0.16, linewidth=0)
        else:
            level = t_interval([getattr(r.last, METRIC) for r in results]).mean
            panel.plot([0, end], [level, level], color=INK, linewidth=1.3, linestyle=(0, (4, 3)))
    panel.set_xlim(0, end)
    ends = [t_interval([getattr(r.last, METRIC) for r in arms[a]]).mean for a in arms]
    places = spread(ends, LINE_HEIGHT * height)
    for arm, value, place in zip(arms, ends, places, strict=True):
        panel.annotate(
            f"{front[arm]} {value:.2f}", xy=(end, value), xytext=(end * 1.03, place),
            color=colours.get(arm, INK), va="center", annotation_clip=False,
            weight="bold" if arm in trained else "normal",
        )  # fmt: skip
