"""The page of the benchmark, docs/benchmark.md, and its plots, of what docs/benchmark.json holds."""

from __future__ import annotations

import math
from html import escape

import figures

COLOURS = {"by hand": "#8a8f98", "deployed": "#d9480f", "Ray": "#1c7ed6", "Dask": "#e0a800", "PyTorch gloo": "#9c36b5",
           "iperf3": "#2b8a3e"}  # fmt: skip
HEAD = """# Benchmark

Deployed servers compared with servers started by hand and with other systems, on one machine over loopback. `make bench`
measures all of it, and writes this page, its plots and [benchmark.json](benchmark.json).

The contestants use the machine one at a time, in one order in the first round and in the reverse order in the next. A cell has
the median of the rounds, the minimum and maximum in parentheses, and the ratio to "by hand": the median of the ratios of the
rounds. A higher ratio is better, also for times. On other machines, figures differ more than ratios. `make bench` compares the
ratios with those of the previous run, and reports which became 20 % worse. [Performance](performance.md) says what makes the
difference.
"""
SECTIONS = [
    ("Bandwidth, worker to worker (GB/s)", "benchmark-bandwidth.svg", figures.BANDWIDTH, """\
One worker reads arrays of 32-bit floats of another. The caller, which measures the time, receives no large data. 1 MB is 2^20
bytes, 1 GB/s is 10^9 bytes per second. TensorFlow reads a variable of task 1 on task 0. Ray and Dask get a new array each time,
created before the measurement, because they cache what was read. PyTorch receives into existing memory, and so does not pay for
fresh pages as the others do. iperf3 discards the data that it receives, and has one figure for all sizes."""),
    ("Latency (ms)", None, figures.LATENCY, """\
An almost empty step on two tasks, and a chain of 100 additions that alternate between them. The session is on one of them."""),
    ("Computation", None, figures.COMPUTATION, """\
A product of 2048 x 2048 matrices (32-bit floats) in GFLOP/s, and training of a dense network (784-512-512-10, 128 examples) in
steps/s: by one task alone, and by two tasks of one machine at the same time (sum of both)."""),
    ("Start (s)", None, figures.START, """\
From the start of a server's process until it answers with its devices."""),
]  # fmt: skip


def number(value):
    """Return a number with three figures that count."""
    if value >= 100 or value == 0:
        return f"{value:.0f}"
    return f"{value:.{2 - math.floor(math.log10(value))}f}" if value < 10 else f"{value:.1f}"


def cell(report, name, measure):
    """Return what the table says of a contestant and a measure."""
    own = report["figures"].get(name, {}).get(measure.name)
    if own is None:
        return "-"
    text = f"{number(own['median'])} ({number(own['low'])}-{number(own['high'])})"
    ratio = report["ratios"].get(name, {}).get(measure.name)
    return text if ratio is None else f"{text}, {ratio:.2f}x"


def table(rows):
    """Return rows of cells, the first one the heads, as lines of a table in Markdown."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in rows]


def title(measure):
    """Return a measure's name, with its unit where its section has several."""
    return f"{measure.name} ({measure.unit})" if measure in figures.COMPUTATION else measure.name


def page(report):
    """Return docs/benchmark.md."""
    machine = report["machine"]
    about = f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gb']} GB, Linux {machine['kernel']}"
    lines = [HEAD, f"Measured on {machine['date']}, {report['rounds']} round(s): {about}.", ""]
    rows = [["contestant", "version", "what it is"]]
    rows += [[name, one.get("version") or "-", one["about"]] for name, one in report["contestants"].items()]
    lines += [*table(rows), ""]
    lines += [f"`-` of {name}: {reason}." for name, reason in report["missing"].items()] + ([""] if report["missing"] else [])
    for head, plot, measures, text in SECTIONS:
        names = [name for name in report["contestants"] if any(one.name in report["figures"].get(name, {}) for one in measures)]
        # One that could have been there: shown, so that a hole is seen as one.
        names += [name for name in report["missing"] if measures == figures.BANDWIDTH and name not in names]
        rows = [[""] + [title(measure) for measure in measures]]
        rows += [[name] + [cell(report, name, measure) for measure in measures] for name in names]
        lines += [f"## {head}", text, "", *table(rows), ""]
        lines += [f"![{head}]({plot})", ""] if plot else []
    lines += [
        "## Deployed against by hand",
        'Ratios to "by hand"; higher is better for all measures. For the start, see its table.',
        "",
    ]
    return "\n".join([*lines, "![Deployed against by hand](benchmark-ratios.svg)", ""])


def plots(report):
    """Return the plots: file name -> SVG."""
    bandwidth = [
        (measure.name, [(name, report["figures"][name][measure.name]) for name in COLOURS if _has(report, name, measure)])
        for measure in figures.BANDWIDTH
    ]
    # Without the start, whose many times would leave the others no room.
    own = {name: ratio for name, ratio in report["ratios"].get("deployed", {}).items() if not name.startswith("start")}
    spread = {name: {"median": ratio, "low": ratio, "high": ratio} for name, ratio in own.items()}
    return {
        "benchmark-bandwidth.svg": bars("Bandwidth, worker to worker", "GB/s", bandwidth),
        "benchmark-ratios.svg": bars(
            "Deployed, times as good as by hand", "", [(name, [("deployed", one)]) for name, one in spread.items()], mark=1
        ),
    }


def _has(report, name, measure):
    return measure.name in report["figures"].get(name, {})


WIDTH, LEFT, BAR, GAP, TOP = 860, 150, 15, 12, 64  # in pixels


def bars(head, unit, groups, mark=None):
    """Return bars from left to right as an SVG: ``groups`` is (label, [(contestant, summary)]), ``mark`` a value with a line."""
    most = max([one["high"] for _label, own in groups for _name, one in own] + [mark or 0]) or 1
    scale = (WIDTH - LEFT - 130) / most
    names = list(dict.fromkeys(name for _label, own in groups for name, _one in own))
    drawn, y = [], TOP
    for label, own in groups:
        drawn.append(_text(LEFT - 8, y + BAR * max(len(own), 1) / 2 + 4, label, "end"))
        for name, one in own:
            x, low, high = (LEFT + scale * one[key] for key in ("median", "low", "high"))
            drawn.append(f'<rect x="{LEFT}" y="{y + 1}" width="{x - LEFT:.1f}" height="{BAR - 2}" fill="{COLOURS[name]}"/>')
            if one["high"] > one["low"]:
                drawn.append(f'<path d="M{low:.1f} {y + BAR / 2}H{high:.1f}" stroke="#222" stroke-width="1.5"/>')
            drawn.append(_text(high + 6, y + BAR - 4, f"{number(one['median'])} {unit}".strip()))
            y += BAR
        y += GAP
    if mark is not None:
        drawn.append(f'<path d="M{LEFT + scale * mark:.1f} {TOP - 6}V{y}" stroke="#222" stroke-dasharray="4 3"/>')
    key, x = [], LEFT
    for name in names if len(names) > 1 else []:
        key += [f'<rect x="{x}" y="36" width="11" height="11" fill="{COLOURS[name]}"/>', _text(x + 16, 46, name)]
        x += 36 + 7 * len(name)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 8}" viewBox="0 0 {WIDTH} {y + 8}" role="img" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f"<title>{escape(head)}</title>", f'<rect width="{WIDTH}" height="{y + 8}" fill="#fff"/>',
        f'<text x="{LEFT}" y="22" font-size="15" font-weight="bold">{escape(head)}</text>', *key, *drawn, "</svg>", "",
    ])  # fmt: skip


def _text(x, y, text, anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
