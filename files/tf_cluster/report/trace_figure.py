"""Read, summarise and draw a run's trace: its trace.json (see run/trace.py), or its profiles (profiles.py).

Times are in seconds, except on the figure's axis, which is in milliseconds.
"""

from __future__ import annotations

import html
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = "tf-cluster-1"
MAX_BARS = 4000  # a browser draws them in one to two seconds
MAX_VIEWS = 100  # steps that can be chosen
LONGEST = 10  # rows of the table of operations
ROW_PIXELS = 24
OTHER = "other operations"
# Distinguishable with colour blindness, on light and dark pages.
COLOURS = ("#4c78a8", "#f2a541", "#54a24b", "#b279a2", "#9c755f", "#72b7b2", "#d67195", "#8c9a3f", "#7f7fd5")
TRANSFER, STEP, REST, FAINT = "#e4572e", "#8b95a1", "#a0a7b0", "rgba(128,128,128,.13)"
KERNEL = "#1f7a6d"


class Bar(NamedTuple):
    """A period of time: an operation, a GPU kernel, a transfer, or a step of the program."""

    name: str
    category: str
    task: str
    lane: str
    begun: float
    took: float
    more: dict[str, Any]

    @property
    def ended(self) -> float:
        """Return its end in seconds."""
        return self.begun + self.took


class Trace(NamedTuple):
    """The content of a trace: its bars, and arrows from operations to the transfers of their results."""

    about: dict[str, Any]
    bars: list[Bar]
    arrows: list[tuple[tuple[str, str, float], tuple[str, str, float]]]  # (task, lane, time) of both ends
    profiled: bool = False  # whether it comes from TensorFlow's profiler, which records no sizes

    def of(self, category: str) -> list[Bar]:
        """Return the bars of a category: operation, kernel, transfer or step."""
        return [bar for bar in self.bars if bar.category == category]


def read(path: Path) -> Trace | None:
    """Return the trace; None if there is none or the program wrote its own. Raise ValueError if it is invalid."""
    try:
        with path.open("rb") as file:
            if f'"format": "{FORMAT}"'.encode() not in file.read(1000):
                return None
        found = json.loads(path.read_text(encoding="utf-8"))
        return gather(found["otherData"], found["traceEvents"])
    except OSError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"trace.json is not a trace: {error!r}") from None


def gather(about: dict[str, Any], events: list[dict[str, Any]]) -> Trace:
    """Return the events as bars and arrows."""
    tasks = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    bars: list[Bar] = []
    ends: dict[int, dict[str, tuple[str, str, float]]] = {}  # arrow -> "s" and "f" -> task, lane and time
    for event in events:
        if event["ph"] == "M":
            continue
        task, lane, begun = tasks[event["pid"]], lanes[event["tid"]], event["ts"] / 1e6
        if event["ph"] == "X":
            bars.append(Bar(event["name"], event["cat"], task, lane, begun, event["dur"] / 1e6, event["args"]))
        else:
            ends.setdefault(event["id"], {})[event["ph"]] = (task, lane, begun)
    if not all(math.isfinite(bar.ended) for bar in bars):
        raise ValueError("a time is not a finite number")
    return Trace(about, bars, [(end["s"], end["f"]) for end in ends.values()])


def totals(trace: Trace) -> dict[str, int]:
    """Return the numbers of steps, operations and transfers, and the transferred bytes unless they are unknown."""
    transfers = trace.of("transfer")
    found = {
        "steps": len({bar.more["step"] for bar in trace.of("step")}),
        "operations": len(trace.of("operation")),
        "transfers": len(transfers),
    }
    return found if trace.profiled else {**found, "bytes": sum(bar.more["bytes"] for bar in transfers)}


def busy(bars: list[Bar]) -> float:
    """Return the seconds in which at least one of the bars was active."""
    total, until = 0.0, -math.inf
    for bar in sorted(bars, key=lambda bar: bar.begun):
        total += max(0.0, bar.ended - max(bar.begun, until))
        until = max(until, bar.ended)
    return total


def by_task(trace: Trace) -> dict[str, dict[str, Any]]:
    """Return for each task its operations, computing time in seconds and share of the steps' time."""
    whole = busy(trace.of("step")) or 1.0
    gathered: dict[str, list[Bar]] = {}
    for bar in trace.of("operation") + trace.of("kernel"):
        gathered.setdefault(bar.task, []).append(bar)
    return {
        task: {
            "operations": sum(bar.category == "operation" for bar in bars),
            "seconds": (seconds := busy(bars)),
            "share": min(1.0, seconds / whole),
            "peak_bytes": max(bar.more.get("peak_bytes", 0) for bar in bars),
        }
        for task, bars in gathered.items()
    }


def by_route(trace: Trace) -> list[dict[str, Any]]:
    """Return the transfers of each pair of tasks, the most bytes first.

    The rate is bytes per second of the time in which at least one transfer was active. A profile has no bytes.
    """
    routes: dict[tuple[str, str], list[Bar]] = {}
    for bar in trace.of("transfer"):
        routes.setdefault((bar.more["from"], bar.more["to"]), []).append(bar)
    table = []
    for (source, target), bars in routes.items():
        size, seconds = 0 if trace.profiled else sum(bar.more["bytes"] for bar in bars), busy(bars)
        table.append(
            {
                "from": source,
                "to": target,
                "tensors": len(bars),
                "bytes": size,
                "seconds": seconds,
                "rate": size / seconds if seconds else 0,
            }
        )
    return sorted(table, key=lambda row: (-row["bytes"], -row["seconds"]))


def longest(trace: Trace) -> list[dict[str, Any]]:
    """Return the operations and kernels that took the longest in all, by task and type."""
    kinds: dict[tuple[str, str, str], list[Bar]] = {}
    for bar in trace.of("operation") + trace.of("kernel"):
        name = bar.more.get("op") or (bar.name if bar.category == "kernel" else OTHER)
        kinds.setdefault((bar.task, "GPU" if bar.category == "kernel" else "", name), []).append(bar)
    table: list[dict[str, Any]] = [
        {
            "task": task,
            "name": name,
            "where": where,
            "count": len(bars),
            "seconds": sum(bar.took for bar in bars),
            "most": max(bar.took for bar in bars),
        }
        for (task, where, name), bars in kinds.items()
    ]
    return sorted(table, key=lambda row: -row["seconds"])[:LONGEST]


def views(trace: Trace) -> list[dict[str, Any]]:
    """Return the spans that the figure can show, in milliseconds: each step from its first operation to its last, and all."""
    spans: dict[int, list[float]] = {}
    for bar in trace.bars:
        if bar.category != "step" and "step" in bar.more:
            span = spans.setdefault(bar.more["step"], [math.inf, -math.inf])
            span[:] = [min(span[0], bar.begun), max(span[1], bar.ended)]
    spans = dict(sorted(spans.items()))
    found = [
        {"name": f"step {step}: {seconds(end - begin)}", "range": widened(begin, end)}
        for step, (begin, end) in [*spans.items()][:MAX_VIEWS]
    ]
    if len(found) != 1:
        begin, end = min(bar.begun for bar in trace.bars), max(bar.ended for bar in trace.bars)
        found.append({"name": f"all {len(spans)} steps: {seconds(end - begin)}", "range": widened(begin, end)})
    return found


def widened(begin: float, end: float) -> list[float]:
    """Return a span in milliseconds, with a margin at both ends."""
    room = (end - begin or 1e-6) * 0.02
    return [(begin - room) * 1e3, (end + room) * 1e3]


def seconds(value: float) -> str:
    """Return a time as text with a unit."""
    for factor, unit in ((1, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{digits(value * factor)} {unit}"
    return f"{digits(value * 1e6)} µs"


def size(value: float) -> str:
    """Return a number of bytes as text with a unit."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{digits(value / factor)} {unit}"
    return f"{value:.0f} B"


def digits(value: float) -> str:
    """Return a number with three significant digits, or all digits before the decimal point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def described(bar: Bar) -> str:
    """Return the hover text of a bar. It is HTML, so texts from the program are escaped."""
    more = bar.more
    if bar.category == "transfer":
        rate = f" at {size(more['bytes_per_second'])}/s" if "bytes_per_second" in more else ""
        amount = size(more["bytes"]) if "bytes" in more else more.get("op", "tensor")
        lines = [f"{more['from']} → {more['to']}: {amount} in {seconds(bar.took)}{rate}"]
    elif bar.category == "operation":
        made = f" → {', '.join(more['outputs'])}" if more.get("outputs") else ""
        waited = f", after {seconds(more['waited_us'] / 1e6)} in the queue" if "waited_us" in more else ""
        memory = f", {size(more['peak_bytes'])} of memory" if "peak_bytes" in more else ""
        lines = [f"{more.get('op', '')}({shortened(more.get('inputs', ''))}){made}", f"{seconds(bar.took)}{waited}{memory}"]
    elif bar.category == "kernel":
        lines = [f"{seconds(bar.took)} on the GPU", shortened(more.get("kernel", ""))]
    else:
        lines = [f"{seconds(bar.took)} measured by the program"]
    step = f"step {more['step']}" if "step" in more else "outside of steps"
    lines.append(f"{step}, {bar.task}, began at {bar.begun * 1e3:.3f} ms")
    return "<br>".join([f"<b>{html.escape(bar.name)}</b>", *map(html.escape, lines)])


def shortened(text: str) -> str:
    """Return a text without its middle if it is long."""
    return text if len(text) < 90 else f"{text[:44]} … {text[-44:]}"


def rows(trace: Trace) -> dict[str, list[str]]:
    """Return the lanes of each task, from the top: the program's task first; steps, devices, what arrives."""
    found: dict[str, set[str]] = {}
    for bar in trace.bars:
        found.setdefault(bar.task, set()).add(bar.lane)
    first = trace.about.get("program_task")

    def order(lane: str) -> tuple[int, str, int]:
        base, _space, number = lane.partition(" (")
        return {"session.run": 0, "steps": 0, "from other tasks": 2}.get(base, 1), base, int(number.rstrip(")") or 1)

    return {task: sorted(found[task], key=order) for task in sorted(found, key=lambda task: (task != first, task))}


def figure(trace: Trace, machines: dict[str, str]) -> str:
    """Return the figure as JSON for plotly.js: each operation a bar in its task's lane. ``machines``: task -> machine."""
    import plotly.graph_objects as go

    heights: dict[tuple[str, str], int] = {}  # (task, lane) -> row
    names: dict[int, str] = {}
    bands: list[dict[str, float]] = []
    titles: list[dict[str, Any]] = []
    for task, lanes in rows(trace).items():
        top = len(heights) + len(bands)  # a row for the task's name precedes its lanes
        for lane in lanes:
            row = len(heights) + len(bands)
            heights[task, lane], names[row] = row, "" if lane.endswith(")") else html.escape(lane)
        bands.append({"y0": top - 0.5, "y1": top + len(lanes) - 0.5})
        titles.append({"text": f"<b>{html.escape(task)}</b>  {html.escape(machines.get(task, ''))}", "y": top - 0.5})
    drawn, total = chosen(trace), len(heights) + len(bands)
    figure = go.Figure()
    for name, colour, bars in coloured(drawn):
        figure.add_bar(
            name=html.escape(name),
            base=[round(bar.begun * 1e3, 6) for bar in bars],
            x=[round(bar.took * 1e3, 6) for bar in bars],
            y=[heights[bar.task, bar.lane] for bar in bars],
            text=[html.escape(bar.name.rsplit("/", 1)[-1]) for bar in bars],
            hovertext=[described(bar) for bar in bars],
            marker={"color": colour, "line": {"color": colour, "width": 1}},  # the line makes the shortest bars visible
        )
    look = {"orientation": "h", "width": 0.82, "hoverinfo": "text", "textposition": "inside", "textangle": 0}
    figure.update_traces(**look, insidetextanchor="middle", insidetextfont={"color": "#fff"})
    if trace.arrows and len(drawn) == len(trace.bars):
        ends = [[(heights[task, lane], at * 1e3) for task, lane, at in arrow] for arrow in trace.arrows]
        points = [point for begin, end in ends for point in (begin, end, (None, None))]
        line = {"color": TRANSFER, "width": 1.2, "dash": "dot"}
        x, y = [at for _row, at in points], [row for row, _at in points]
        figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", name="sent to")
    clear = "rgba(0,0,0,0)"
    figure.update_layout(
        template="none", barmode="overlay", hovermode="closest", dragmode="zoom", hoverlabel={"align": "left"},
        height=total * ROW_PIXELS + 130, margin={"l": 120, "r": 10, "t": 10, "b": 40}, paper_bgcolor=clear, plot_bgcolor=clear,
        font={"family": "system-ui, sans-serif", "size": 12}, uniformtext={"minsize": 9, "mode": "hide"},
        modebar={"bgcolor": clear, "color": REST, "activecolor": TRANSFER},
        legend={"orientation": "h", "y": -34 / (total * ROW_PIXELS), "yanchor": "top"},
        xaxis={"ticksuffix": " ms", "gridcolor": FAINT, "zeroline": False, "exponentformat": "none"},
        yaxis={
            "range": [total - 0.5, -1.6], "tickvals": list(names), "ticktext": list(names.values()),
            "fixedrange": True, "showgrid": False, "zeroline": False, "ticklabelstandoff": 6,
        },
    )  # fmt: skip
    for band, title in zip(bands, titles):
        figure.add_shape(type="rect", xref="paper", x0=0, x1=1, **band, fillcolor=FAINT, line_width=0, layer="below")
        figure.add_annotation(**title, xref="paper", x=0, xanchor="left", yanchor="bottom", showarrow=False)
    text: str = figure.to_json()
    return text


def chosen(trace: Trace) -> list[Bar]:
    """Return the bars to draw: all, or the longest if there are too many."""
    bars = trace.bars
    if len(bars) > MAX_BARS:
        bars = sorted(bars, key=lambda bar: (bar.category != "step", -bar.took))[:MAX_BARS]
    return bars


def coloured(bars: list[Bar]) -> list[tuple[str, str, list[Bar]]]:
    """Return name, colour and bars of each legend entry; operation types with the longest total time have separate entries."""
    kinds: dict[str, list[Bar]] = {}
    for bar in bars:
        if bar.category == "operation":
            kinds.setdefault(bar.more.get("op") or OTHER, []).append(bar)
    ranked = sorted(kinds, key=lambda kind: (kind == OTHER, -sum(bar.took for bar in kinds[kind])))
    own = [(kind, colour, kinds[kind]) for kind, colour in zip(ranked, COLOURS) if kind != OTHER]
    rest = [bar for kind in kinds if kind not in {name for name, _colour, _bars in own} for bar in kinds[kind]]
    others = [(OTHER, REST, rest)] if rest else []
    whole = {category: [bar for bar in bars if bar.category == category] for category in ("step", "kernel", "transfer")}
    return [
        *[("step of the program", STEP, whole["step"])] * bool(whole["step"]), *own, *others,
        *[("kernel on a GPU", KERNEL, whole["kernel"])] * bool(whole["kernel"]),
        *[("transfer between tasks", TRANSFER, whole["transfer"])] * bool(whole["transfer"]),
    ]  # fmt: skip
