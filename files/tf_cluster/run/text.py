"""Clean a program's output for logs, terminals and pages, and list names. Machines and controller use it."""

from __future__ import annotations

import re

MAX_NAMES = 3  # in a sentence
CODES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\^_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # ECMA-48


def plain_lines(text: str) -> list[str]:
    """Return text as lines of valid UTF-8, without terminal control codes and with only the last state of progress bars."""
    text = text.encode(errors="backslashreplace").decode()  # lone surrogates cannot be encoded
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.removesuffix("\n").split("\n")] if text else []
    return [CODES.sub("", line) for line in lines]


def listed(names: list[str]) -> str:
    """Return some names for a sentence."""
    more = len(names) - MAX_NAMES
    return f"{', '.join(names[:MAX_NAMES])} and {more} more" if more > 0 else " and ".join(names)
