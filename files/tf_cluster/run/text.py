"""Make what a program printed fit for a log, a terminal and a page. The machines and the controller use it."""

from __future__ import annotations

import re

CODES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\^_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # ECMA-48


def plain_lines(text: str) -> list[str]:
    """Return text as lines: without terminal control codes, of a progress bar only how far it came, and all of it UTF-8."""
    text = text.encode(errors="backslashreplace").decode()  # half of a surrogate pair can be written nowhere
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.removesuffix("\n").split("\n")] if text else []
    return [CODES.sub("", line) for line in lines]
