"""Clean a program's output for logs, terminals and pages. Machines and controller use it."""

from __future__ import annotations

import re

CODES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\^_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # ECMA-48


def plain_lines(text: str) -> list[str]:
    """Return text as lines of valid UTF-8, without terminal control codes and with only the last state of progress bars."""
    text = text.encode(errors="backslashreplace").decode()  # lone surrogates cannot be encoded
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.removesuffix("\n").split("\n")] if text else []
    return [CODES.sub("", line) for line in lines]
