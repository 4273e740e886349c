"""table.py: columns are aligned, whatever the rows' lengths."""

from project import load

table = load("tf_cluster.table").table


def test_columns_are_aligned():
    assert table([("task", "state"), ("worker:10", "answers"), ("ps:0", "")]) == [
        "task       state",
        "worker:10  answers",
        "ps:0",
    ]


def test_a_row_can_have_a_remark_after_its_last_column():
    assert table([["a", "b"], ["1", "2", "a remark"], ["3"]]) == ["a  b", "1  2  a remark", "3"]


def test_a_table_without_rows_has_no_lines():
    assert table([]) == []
