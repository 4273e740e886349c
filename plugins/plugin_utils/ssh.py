"""The connection of a task, for programs that use it beside Ansible."""

from __future__ import annotations

import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

CONNECTIONS = ("ssh", "local")


def kind_of(connection: Any) -> str:
    """Return the name of a connection's plugin without its collection."""
    name: str = connection.transport.rpartition(".")[2]
    return name


def check(connection: Any, purpose: str) -> None:
    """Raise if the project cannot use the connection for a purpose, such as "transfer files"."""
    if kind_of(connection) not in CONNECTIONS:
        raise AnsibleActionFail(
            f"ansible_connection is {kind_of(connection)}, over which the project cannot {purpose}. "
            f"Set it to {' or '.join(CONNECTIONS)}."
        )


def command(action: ActionBase, *after: str, options: tuple[str, ...] = ()) -> list[str]:
    """Return the words of ssh to the task's machine, with all options of the connection.

    ``options`` come before the machine's name, the words ``after`` behind it.
    """
    connection = action._connection
    connection.host = connection.get_option("host") or action._play_context.remote_addr
    words = connection._build_command(connection.get_option("ssh_executable"), "ssh", *options, connection.host, *after)
    return [os.fsdecode(word) for word in words]
