"""Draw the links of a benchmark (benchmark/benchmark.py) as heat maps from sender to receiver."""

from __future__ import annotations

import html
from typing import Any

FORMAT = "tf-cluster-benchmark-1"
MAX_LABELED_TASKS = 12  # with more, the numbers do not fit into the cells
FAINT, GREY = "rgba(128,128,128,.13)", "#a0a7b0"
# Title, key of a link's row, unit and colour scale. Bright is good: a high rate, a low latency.
MAPS = (
    ("Rate, GB/s", "gigabytes_per_second", "GB/s", "Viridis"),
    ("Latency, ms a step", "step_milliseconds", "ms", "Viridis_r"),
)


def read(result: object) -> dict[str, Any] | None:
    """Return the benchmark in a run's result, None if there is none."""
    found = result.get("benchmark") if isinstance(result, dict) else None
    return found if isinstance(found, dict) and found.get("format") == FORMAT else None


def grid(benchmark: dict[str, Any], what: str) -> list[list[float | None]]:
    """Return a row per sender with a value per receiver, None if not measured."""
    values = {(row["from"], row["to"]): row.get(what) for row in benchmark["links"]}
    return [[values.get((sender, receiver)) for receiver in benchmark["tasks"]] for sender in benchmark["tasks"]]


def figure(benchmark: dict[str, Any]) -> str:
    """Return the figure as JSON for plotly.js; raises KeyError or a similar error if a program has changed the data."""
    from plotly.subplots import make_subplots

    names = [html.escape(str(task)) for task in benchmark["tasks"]]
    drawn = make_subplots(cols=len(MAPS), subplot_titles=[title for title, *_more in MAPS], horizontal_spacing=0.16)
    for column, (_title, what, unit, colours) in enumerate(MAPS, start=1):
        drawn.add_heatmap(
            z=grid(benchmark, what), zmin=0, x=names, y=names, colorscale=colours, col=column, row=1, xgap=2, ygap=2,
            hovertemplate=f"%{{y}} → %{{x}}: %{{z:.3g}} {unit}<extra></extra>", hoverongaps=False,
            texttemplate="%{z:.3g}" if len(names) <= MAX_LABELED_TASKS else None,
            colorbar={"x": (0.44, 1.02)[column - 1], "thickness": 10, "outlinewidth": 0},
        )  # fmt: skip
    clear = "rgba(0,0,0,0)"
    drawn.update_layout(
        template="none", height=max(330, min(900, 28 * len(names) + 170)), margin={"l": 80, "r": 60, "t": 40, "b": 70},
        paper_bgcolor=clear, plot_bgcolor=FAINT, font={"family": "system-ui, sans-serif", "size": 12},
        modebar={"bgcolor": clear, "color": GREY},
    )  # fmt: skip
    drawn.update_xaxes(title={"text": "to", "standoff": 6}, type="category", showgrid=False, ticks="")
    drawn.update_yaxes(title={"text": "from", "standoff": 6}, type="category", showgrid=False, ticks="", autorange="reversed")
    text: str = drawn.to_json()
    return text
