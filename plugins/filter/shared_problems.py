"""Judge whether a folder is shared by all machines, and choose the ID of the user that writes there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.run.text import listed

SYSTEM_IDS = range(999, 99, -1)  # of system users, in the order in which distributions assign them


def shared_problems(
    checked: Mapping[str, Any],
    path: str,
    seen: Mapping[str, list[str]] | None = None,
    accounts: Mapping[str, Any] | None = None,
    users: Mapping[str, list[int]] | None = None,
) -> list[str]:
    """Return a sentence for each machine on which ``path`` cannot be used or is another folder.

    ``checked`` has the machines' results of the module shared_folder, ``seen`` the machines whose files each sees (empty:
    nothing was written), ``accounts`` the entries of the user tensorflow in /etc/passwd, ``users`` the IDs of all users.
    """
    problems = [
        f"{machine}: {path} (tf_shared) {found['problem']}. {_remedy(found)}"
        for machine, found in checked.items()
        if found.get("problem")
    ]
    whole = {machine: found for machine, found in checked.items() if not found.get("problem")}
    groups: dict[tuple[str, ...], list[str]] = {}
    for machine, names in sorted((seen or {}).items()):
        if machine in whole:
            groups.setdefault(tuple(sorted(names)), []).append(machine)
    if len(groups) > 1 or (groups and set(next(iter(groups))) != set(whole)):
        reference, members = max(groups.items(), key=lambda group: len(group[1]))
        have = "has" if len(members) == 1 else "have"
        lacking = sorted(set(whole) - {name for names in groups for name in names})
        for others, machines in groups.items():
            if others == reference:
                continue
            problems += [
                f"{machine}: {path} (tf_shared) is not the folder that {listed(members)} {have}: "
                f"here {_mount(whole[machine])}, there {_mount(whole[members[0]])}. Mount the same file system on all machines."
                for machine in machines
            ]
        problems += [f"{machine}: the other machines do not see what it writes to {path} (tf_shared)." for machine in lacking]
    problems += _user_problems(path, accounts or {}, users or {})
    return problems


def _user_problems(path: str, accounts: Mapping[str, Any], users: Mapping[str, list[int]]) -> list[str]:
    """Return a sentence if the user tensorflow has different IDs, or cannot get its ID on a machine."""
    owners: dict[int, list[str]] = {}
    for machine, account in accounts.items():
        if account:
            owners.setdefault(int(account[2]), []).append(machine)
    if len(owners) > 1:
        ids = " and ".join(f"{user} on {listed(machines)}" for user, machines in owners.items())
        return [
            f"The user tensorflow has different IDs, so it could not use its own files in {path} (tf_shared): {ids}. Give it the "
            "same ID on all machines with 'usermod --uid', or remove it with playbooks/teardown.yml on the machines that differ."
        ]
    return [
        f"{machine}: another user has the ID {user}, which the user tensorflow has on {listed(machines)} and needs for {path} "
        "(tf_shared). Give the other user another ID with 'usermod --uid'."
        for user, machines in owners.items()
        for machine, taken in users.items()
        if not accounts.get(machine) and user in taken
    ]


def shared_user(facts: Mapping[str, Any]) -> int | str:
    """Return the ID that the user tensorflow gets on machines that lack it; empty: any. ``facts`` is machine -> tf_machine."""
    given = [int(found["account"][2]) for found in facts.values() if found["account"]]
    used = {user for found in facts.values() for user in found["users"]}
    return given[0] if given else next((user for user in SYSTEM_IDS if user not in used), "")


def _remedy(found: Mapping[str, Any]) -> str:
    mount = f"It is on {found['mount']}. " if found.get("mount") else ""
    return f"{mount}Mount the shared file system there, for reading and writing, with free space."


def _mount(found: Mapping[str, Any]) -> str:
    return found.get("mount") or "an unknown file system"


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"shared_problems": shared_problems, "shared_user": shared_user}
