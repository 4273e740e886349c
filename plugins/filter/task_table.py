"""The gate's report for people."""

from __future__ import annotations

DOCUMENTATION = """
name: task_table
short_description: Show the tasks of the cluster as a table
options:
  _input: {description: Tasks as the gate reports them, each with its machine, type: list, required: true}
  explained: {description: Results of a loop that asked systemd about tasks, type: list}
"""

RETURN = """
_value: {description: Lines with task, machine, address, state and reason, type: list, elements: str}
"""

COLUMNS = ("task", "machine", "address", "state", "reason")


def with_machines(tasks, machines):
    """Return the tasks, each with the name of its machine."""
    return [{**task, "machine": machines.get(task["task"], "")} for task in tasks]


def task_table(tasks, explained=()):
    """Return lines; below the table, what systemd says of the tasks that do not answer."""
    rows = [COLUMNS, *([str(task[column] or "") for column in COLUMNS] for task in tasks)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for result in explained:
        for sentence in result.get("answer", {}).get("why", {}).values():
            lines.append(f"{result['item']['machine']}: {sentence}")
        if result.get("unreachable"):
            lines.append(f"{result['item']['machine']}: cannot be reached by Ansible either; is the machine up?")
    return lines


class FilterModule:
    """What Ansible loads."""

    def filters(self):
        """Return the filters by name."""
        return {"task_table": task_table, "with_machines": with_machines}
