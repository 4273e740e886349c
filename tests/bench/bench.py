#!/usr/bin/env python3
"""Compare our servers with what a user would do or choose instead: ``bench.py ROUNDS`` (see docs/benchmark.md)."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import signal
import sys
import time
from pathlib import Path

import contestants
import figures
import page
import processes

DOCS = contestants.ROOT / "docs"
BEFORE = DOCS / "benchmark.json"
SECONDS_A_ROUND = 240  # of measuring; installing the peers, once, is not counted


def machine():
    """Return what is known of this machine."""
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return {
        "processor": found[1] if found else platform.machine(), "cores": os.cpu_count(), "memory_gb": round(memory),
        "kernel": ".".join(platform.release().split(".")[:2]), "date": today.isoformat(),
    }  # fmt: skip


def prepare(missing):
    """Return the contestants that are to be had; note in ``missing`` why the others are not."""
    ready = []
    for contestant in contestants.CONTESTANTS:
        try:
            contestant.environment()
            ready.append(contestant)
        except contestants.Missing as reason:
            missing[contestant.name] = str(reason)
            print(f"  {contestant.name}: {reason}", flush=True)
    return ready


def measure(ready, rounds, about, missing):
    """Return the rounds that were made, each contestant -> measure -> value; note versions in ``about``."""
    end, made = time.monotonic() + SECONDS_A_ROUND * rounds, []
    for turn in range(rounds):
        made.append({})
        for contestant in reversed(ready) if turn % 2 else ready:
            name, begun = contestant.name, time.monotonic()
            if begun > end - 5:
                print(
                    f"The limit of {SECONDS_A_ROUND * rounds} s is reached: what is missing of round {turn + 1} stays out.",
                    flush=True,
                )
                return made
            try:
                found = contestants.measure(contestant, end - begun)
            except contestants.Missing as reason:
                missing[name] = str(reason)
                print(f"round {turn + 1} of {rounds}  {name}: {reason}", flush=True)
                continue
            about[name]["version"] = found["version"]
            made[-1][name] = found["figures"]
            shown = "  ".join(f"{key} {page.number(value)}" for key, value in found["figures"].items())
            print(f"round {turn + 1} of {rounds}  {name} ({time.monotonic() - begun:.0f} s): {shown}", flush=True)
    return made


def main():
    """Measure, compare with the run before, write; exit status 0, or 1 where our own servers or those by hand failed."""
    parser = argparse.ArgumentParser(description="Measure how fast our servers are beside others.")
    parser.add_argument("rounds", type=int, nargs="?", default=3, help="how often each contestant is measured (3)")
    rounds = max(1, parser.parse_args().rounds)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    processes.adopt()
    missing, about = {}, {one.name: {"about": one.about} for one in contestants.CONTESTANTS}
    made = measure(prepare(missing), rounds, about, missing)
    report = figures.report(made, contestants.BY_HAND, about, missing, machine())
    if lost := [name for name in (contestants.BY_HAND, "deployed") if name not in report["figures"]]:
        sys.exit(f"Nothing is written: {' and '.join(lost)} could not be measured.")
    before = json.loads(BEFORE.read_text(encoding="utf-8"))["ratios"] if BEFORE.exists() else {}
    BEFORE.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = page.page(report)
    (DOCS / "benchmark.md").write_text(text, encoding="utf-8")
    for name, plot in page.plots(report).items():
        (DOCS / name).write_text(plot, encoding="utf-8")
    print("\n" + text[text.index("## ") :], flush=True)
    for sentence in (found := figures.worse(before, report["ratios"])):
        print(f"WORSE: {sentence}")
    print(
        f"{len(found)} ratio(s) became worse by more than 20 % than in docs/benchmark.json before."
        if before
        else "Nothing to compare with."
    )


if __name__ == "__main__":
    main()
