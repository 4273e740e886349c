"""Find the processes that listen on TCP ports of this machine. Standard library only."""

from __future__ import annotations

import os
import pwd
import socket
import sys
from pathlib import Path
from typing import Any


def port_is_free(port: int) -> bool:
    """Return whether a server can listen on ``port`` on all interfaces, as TensorFlow does."""
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):  # noqa: S104
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((address, port))
        except OSError as error:
            if error.errno == 98:  # EADDRINUSE; other errors mean that the address family is missing
                return False
    return True


def listeners(ports: list[int] | None = None) -> list[dict[str, Any]]:
    """Return the listeners of TCP ports, by default of all.

    Each has ``port``, ``address``, ``user``, ``pid`` and ``name`` (0 and "" if not visible to this user).
    """
    found = {}  # inode of the socket -> listener
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            column = row.split()
            # Columns of proc(5): local address, remote address, state (0A: listening), ... uid, ... inode
            address, _colon, number = column[1].partition(":")
            port = int(number, 16)
            if column[3] == "0A" and (ports is None or port in ports):
                try:
                    user = pwd.getpwuid(int(column[7])).pw_name
                except KeyError:
                    user = column[7]
                found[column[9]] = {"port": port, "address": _address(address), "user": user, "pid": 0, "name": ""}
    if found:
        _name_processes(found)
    return list(found.values())


def _address(text: str) -> str:
    """Return an address of /proc/net/tcp or tcp6, which has words of four bytes in the order of this machine."""
    data = b"".join(int(text[place : place + 8], 16).to_bytes(4, sys.byteorder) for place in range(0, len(text), 8))
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)


def _name_processes(sockets: dict[str, dict[str, Any]]) -> None:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            for fd in (folder / "fd").iterdir():
                who = sockets.get(os.readlink(fd)[len("socket:[") : -len("]")])
                if who and not who["pid"]:
                    who["pid"], who["name"] = int(folder.name), (folder / "comm").read_text().strip()
        except OSError:
            continue


def port_holder(port: int) -> str:
    """Return a description of the listener on ``port``, such as "nginx (process 812, user www-data)"."""
    who = next(iter(listeners([port])), None)
    if not who:
        return "a process that this user cannot see"
    if not who["pid"]:
        return f"a process of user {who['user']} ('ss -ltnp' as root names it)"
    return f"{who['name']} (process {who['pid']}, user {who['user']})"
