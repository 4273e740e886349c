"""What is measured, and what is made of it: medians, ratios to what is done by hand, the comparison with the run before."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

WORSE = 0.8  # of the ratio of before: what is below is said


@dataclass(frozen=True)
class Measure:
    """One measure; ``name`` is what programs and docs/benchmark.json call it."""

    name: str
    unit: str
    more_is_better: bool


BANDWIDTH = [Measure(name, "GB/s", True) for name in ("1 MB", "16 MB", "64 MB", "256 MB", "8 x 32 MB")]
LATENCY = [Measure(name, "ms", False) for name in ("empty step", "chain")]
COMPUTATION = [
    Measure("product", "GFLOP/s", True), Measure("product, two tasks", "GFLOP/s", True),
    Measure("training", "steps/s", True), Measure("training, two tasks", "steps/s", True),
]  # fmt: skip
START = [Measure(name, "s", False) for name in ("start", "start of eight")]
MEASURES = [*BANDWIDTH, *LATENCY, *COMPUTATION, *START]


def summary(values):
    """Return the median of the rounds' values, the lowest and the highest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(rounds, base):
    """Return how many times as good as ``base`` each contestant is, by measure: contestant -> measure -> ratio.

    ``rounds`` is a list of contestant -> measure -> value. The median of the rounds' own ratios: what a machine does besides
    changes from round to round, and within one both have about the same of it.
    """
    found = {}
    for measure in MEASURES:
        for name in dict.fromkeys(name for one in rounds for name in one):
            pairs = [
                (one[name][measure.name], one[base][measure.name])
                for one in rounds
                if measure.name in one.get(name, {}) and measure.name in one.get(base, {})
            ]
            if name != base and pairs:
                each = [value / own if measure.more_is_better else own / value for value, own in pairs]
                found.setdefault(name, {})[measure.name] = round(statistics.median(each), 3)
    return found


def worse(before, now):
    """Return a sentence for each ratio that is less than WORSE of what it was before, or that is not there any more."""
    sentences = []
    for name, measures in before.items():
        for measure, old in measures.items():
            new = now.get(name, {}).get(measure)
            if new is None:
                sentences.append(f"{name}, {measure}: {old:.2f} times by hand before, not measured now")
            elif new < WORSE * old:
                sentences.append(f"{name}, {measure}: {new:.2f} times by hand, {old:.2f} before ({100 * (new / old - 1):+.0f} %)")
    return sentences


def report(rounds, base, contestants, missing, machine):
    """Return what docs/benchmark.json holds.

    ``contestants`` is name -> what it is and which version, ``missing`` is name -> the reason, ``machine`` is what is known
    of it.
    """
    values = {}
    for name in contestants:
        for measure in MEASURES:
            if own := [one[name][measure.name] for one in rounds if measure.name in one.get(name, {})]:
                values.setdefault(name, {})[measure.name] = {key: round(value, 4) for key, value in summary(own).items()}
    return {
        "machine": machine, "rounds": len(rounds), "contestants": contestants, "missing": missing,
        "ratios": ratios(rounds, base), "figures": values,
    }  # fmt: skip
