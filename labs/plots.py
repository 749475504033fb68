"""The plots: when each task waited and ran, how many ran at once, and what more workers gain."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labs.pod_lives import STATES, Span
from labs.timeline import Attempt, steps

# Distinguishable in greyscale print and to colour-blind readers (Okabe-Ito).
WAIT, QUEUED, RUN, LIMIT, SECOND = "#d9d9d9", "#e69f00", "#0072b2", "#d55e00", "#009e73"
# The states of a pod's life, in their order: colour and hatching.
LIVES = ((WAIT, ""), (QUEUED, ""), (RUN, ""), (SECOND, ""), (LIMIT, ""), ("#bbbbbb", "////"))
STYLE = {"font.size": 10, "svg.fonttype": "path", "svg.hashsalt": "airflow-executor-labs"}
# A taller plot would not be read bar by bar any more.
MOST_BARS = 60


def figure(height: float = 3.2, width: float = 7.2) -> tuple[Figure, object]:
    """Return a figure and its axes in the house style; sizes in inches."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(made)
    axes = made.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    return made, axes


def svg(made: Figure, *, titled: bool = True) -> str:
    """Return a figure as an SVG that scales with its page; untitled, the page around it writes the title."""
    import matplotlib

    # Several panels have a title above them all.
    title = next((text for text in made.texts if text.get_text()), made.axes[0].title)
    title.set_visible(titled)
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        made.savefig(buffer, format="svg", metadata={"Date": None, "Title": title.get_text()})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return text.replace("<svg ", '<svg style="max-width:100%;height:auto" ', 1)


def timeline_plot(attempts: Sequence[Attempt], title: str, colour_by: str = "") -> Figure:
    """Return one bar per try: grey while scheduled, orange while queued, blue while running.

    `colour_by` names a field of Attempt ("host", "pool", "queue", "priority") that colours the running part.
    """
    shown = sorted((a for a in attempts if a.start is not None), key=lambda a: (a.start, a.label))[:MOST_BARS]
    origin = min((t for a in shown for t in (a.scheduled, a.queued, a.start) if t is not None), default=0.0)
    made, axes = figure(height=1.2 + 0.2 * max(len(shown), 3))
    colours = _colours(sorted({getattr(a, colour_by) for a in shown}, key=str)) if colour_by else {}
    for row, attempt in enumerate(shown):
        spans = (
            (attempt.scheduled, attempt.queued, WAIT, "scheduled"),
            (attempt.queued, attempt.start, QUEUED, "queued"),
            (attempt.start, attempt.end, colours.get(getattr(attempt, colour_by), RUN) if colour_by else RUN, "running"),
        )
        for begin, end, colour, label in spans:
            if begin is not None and end is not None:
                name = f"{colour_by} {getattr(attempt, colour_by)}" if colour_by and label == "running" else label
                axes.barh(row, end - begin, left=begin - origin, color=colour, height=0.8, label=name)
    axes.set_yticks(range(len(shown)), [a.label for a in shown], fontsize=7)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set(title=title, xlabel="seconds since the first task was scheduled", ylabel="task instance")
    _legend(axes)
    return made


def lives_plot(spans: Sequence[Span], title: str, labels: Mapping[str, str] | None = None) -> Figure:
    """Return the lives of pods over time, one row each, coloured by state; `labels` are other names for rows."""
    names = list(dict.fromkeys(span.name for span in spans))[:MOST_BARS]
    origin = min((span.begin for span in spans), default=0.0)
    made, axes = figure(height=1.4 + 0.26 * max(len(names), 3))
    for state, (colour, hatch) in zip(STATES, LIVES, strict=True):
        for span in spans:
            if span.state == state and span.name in names:
                look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
                axes.barh(names.index(span.name), span.end - span.begin, left=span.begin - origin, height=0.7, label=state, **look)
    axes.set_yticks(range(len(names)), [(labels or {}).get(name, name) for name in names], fontsize=8)
    axes.margins(x=0.01, y=0.02)
    axes.invert_yaxis()
    axes.set(title=title, xlabel="seconds since the first pod was made", ylabel="pod")
    _legend(axes)
    return made


def running_plot(series: Mapping[str, Sequence[Attempt]], title: str, limits: Mapping[str, int] | None = None) -> Figure:
    """Return how many task instances ran over time, one line per series, with the predicted limits dashed."""
    made, axes = figure()
    for (name, attempts), colour in zip(series.items(), cycle((RUN, SECOND, QUEUED, "#cc79a7", "#56b4e9")), strict=False):
        points = steps(attempts)
        if not points:
            continue
        origin = points[0][0]
        times, counts = [0.0, *(t - origin for t, _ in points)], [0, *(n for _, n in points)]
        axes.step(times, counts, where="post", color=colour, label=name, linewidth=1.8)
    for name, limit in (limits or {}).items():
        axes.axhline(limit, color=LIMIT, linestyle="--", linewidth=1.2, label=f"predicted: {name}")
    axes.set(title=title, xlabel="seconds since the first start", ylabel="task instances running")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return made


def depth_plot(readings: Sequence[tuple[float, Mapping[str, int]]], attempts: Sequence[Attempt], title: str) -> Figure:
    """Return how many messages waited in each queue of the broker over time, above how many task instances ran."""
    made, axes = figure()
    origin = readings[0][0] if readings else 0.0
    for queue, colour in zip(
        sorted({queue for _, depths in readings for queue in depths}), cycle((QUEUED, SECOND, "#cc79a7")), strict=False
    ):
        points = [(at - origin, depths.get(queue, 0)) for at, depths in readings]
        axes.step(*zip(*points, strict=True), where="post", color=colour, label=f"waiting in queue {queue}", linewidth=1.8)
    running = [(at - origin, count) for at, count in steps(attempts)]
    if running:
        axes.step(*zip(*running, strict=True), where="post", color=RUN, label="running on workers", linewidth=1.8)
    axes.set(title=title, xlabel="seconds since the first reading", ylabel="task instances")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(axes)
    return made


def speedup_plot(workers: Sequence[int], makespans: Mapping[str, Sequence[float]], cores: int, title: str) -> Figure:
    """Return the speed-up over one worker (makespan with one / makespan with n) for each kind of work."""
    made, axes = figure(height=3.6)
    axes.plot(workers, workers, color="#999999", linestyle=":", label="ideal: as many times faster as workers")
    axes.axvline(cores, color=LIMIT, linestyle="--", linewidth=1.2, label=f"cores of this machine: {cores}")
    for (name, seconds), colour, mark in zip(makespans.items(), cycle((RUN, SECOND, QUEUED)), cycle("os^D"), strict=False):
        axes.plot(workers, [seconds[0] / s for s in seconds], color=colour, marker=mark, label=name)
    axes.set(title=title, xlabel="worker processes (parallelism)", ylabel="speed-up (times)")
    axes.set_xticks(list(workers))
    axes.set_ylim(bottom=0)
    _legend(axes)
    return made


def bars_plot(values: Mapping[str, float], title: str, xlabel: str, unit: str = "s") -> Figure:
    """Return labelled horizontal bars, first entry on top."""
    made, axes = figure(height=1.1 + 0.42 * len(values))
    bars = axes.barh(list(values), list(values.values()), color=RUN, height=0.6)
    axes.bar_label(bars, labels=[f"{value:.3g} {unit}" for value in values.values()], padding=4, fontsize=9)
    axes.margins(x=0.18)
    axes.invert_yaxis()
    axes.set(title=title, xlabel=xlabel)
    return made


def panels_plot(names: Sequence[str], panels: Mapping[str, tuple[Sequence[float | None], str]], title: str) -> Figure:
    """Return one panel of horizontal bars for each measure (values by name, and their unit), side by side; None leaves a gap."""
    made = Figure(figsize=(1.6 + 1.75 * len(panels), 1.0 + 0.4 * len(names)), layout="constrained")
    FigureCanvasSVG(made)
    made.suptitle(title, fontsize=11)
    colours = [(RUN, SECOND, QUEUED, "#cc79a7", "#56b4e9")[i % 5] for i in range(len(names))]
    for axes, (label, (values, unit)) in zip(made.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True):
        bars = axes.barh(list(names), [value or 0.0 for value in values], color=colours, height=0.6)
        texts = ["not measured" if value is None else f"{value:.3g}" for value in values]
        axes.bar_label(bars, labels=texts, padding=3, fontsize=8)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.set_xticks([])
        axes.margins(x=0.35)
        axes.set_title(label + (f", {unit}" if unit else ""), fontsize=9)
        axes.tick_params(length=0)
    made.axes[0].invert_yaxis()
    return made


def _colours(names: Sequence[object]) -> dict[object, str]:
    palette = (RUN, SECOND, "#cc79a7", "#56b4e9", "#f0e442", "#000000")
    return {name: palette[i % len(palette)] for i, name in enumerate(names)}


def _legend(axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        # Of the figure, not of the axes: there the distance would grow with the number of bars.
        axes.figure.legend(unique.values(), unique.keys(), fontsize=9, frameon=False, loc="outside lower center", ncols=3)
