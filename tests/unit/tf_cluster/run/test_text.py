"""text.py: what a program prints, as lines for a terminal and a page."""

import pytest
from project import load

text = load("tf_cluster.run.text")


@pytest.mark.parametrize(
    ("printed", "lines"),
    [
        ("", []),
        ("a\nb\n", ["a", "b"]),
        ("a\n\n", ["a", ""]),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07end", ["red end"]),
        (" 10 %\r 50 %\r100 %\n", ["100 %"]),
        ("a\r\nb", ["a", "b"]),
        ("a\x00\x07b\tc", ["ab\tc"]),
        ("half \ud800", ["half \\ud800"]),
    ],
)
def test_lines_are_without_control_codes(printed, lines):
    assert text.plain_lines(printed) == lines
