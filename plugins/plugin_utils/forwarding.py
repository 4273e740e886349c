"""Forward a port of a task's machine to the controller, until Ctrl-C."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import subprocess
import tempfile
import threading
import time
from types import TracebackType
from typing import IO, Any

from ansible.errors import AnsibleActionFail, AnsibleError, AnsiblePromptInterrupt
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.distributed.tensorflow.plugins.plugin_utils import progress, ssh

LOOPBACK = "127.0.0.1"
START_SECONDS = 60.0  # for ssh to connect
TRIES = 3  # another process may take a free port before ssh does
POLL_SECONDS = 0.05
PROMPT_SECONDS = 2  # that one prompt lasts; the terminal has no lines of this project meanwhile
ONE_LINE_UP = "\x1b[1A"  # Ansible ends a prompt's text with a line break
# Not the shared connection: the forward would outlast this command.
OPTIONS = ("-N", "-T", "-S", "none", "-o", "ExitOnForwardFailure=yes")
# ssh runs the local command when it listens. That the port is in use would not show it: another forward may have taken it.
LISTENS = ("-o", "PermitLocalCommand=yes", "-o", "LocalCommand=echo listens")
REFUSED, IN_USE = "administratively prohibited", "Address already in use"  # messages of ssh


class Forward:
    """Forwards one port of the action's machine, from ``open`` to the end of the ``with`` block."""

    def __init__(self, action: ActionBase) -> None:
        self.action, self.port = action, 0
        self.process: subprocess.Popen[bytes] | None = None
        self.output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self.interrupted, self.closing = threading.Event(), threading.Event()
        self.prompts = threading.Thread(target=self.wait_for_interrupt, daemon=True)

    def __enter__(self) -> Forward:
        """Check the connection, and end the calls at Ctrl-C from now on."""
        ssh.check(self.action._connection, "forward ports")
        self.prompts.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the forward."""
        self.closing.set()
        self.close()
        self.output.close()
        self.errors.close()
        self.prompts.join()  # Ansible shows nothing while it prompts

    def close(self) -> None:
        """Stop ssh."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()

    def wait_for_interrupt(self) -> None:
        """Notice Ctrl-C: during a prompt, Ansible passes it to the task instead of stopping the command."""
        try:
            while not self.closing.is_set():
                Display().prompt_until(ONE_LINE_UP, private=True, seconds=PROMPT_SECONDS, complete_input=())
        except AnsiblePromptInterrupt:
            self.interrupted.set()
            self.close()
        except AnsibleError:
            pass  # no terminal

    def is_over(self) -> bool:
        """Return whether Ctrl-C was pressed. Raises if ssh has exited."""
        if self.interrupted.is_set():
            progress.show_line(f"  the forward of port {self.port} is closed" if self.port else "  no port was forwarded")
            return True
        parent = multiprocessing.parent_process()
        if parent and not parent.is_alive():  # killed, or its terminal was closed
            self.close()
            os._exit(1)
        if self.process and (self.process.poll() is not None or REFUSED in self.messages()):
            raise AnsibleActionFail(self.problem())
        return False

    def open(self, given: dict[str, Any]) -> None:
        """Forward ``port`` at ``address`` of the machine, and show the URL. With the connection local, it is there already."""
        self.port, address = given["port"], f"[{given['address']}]" if ":" in given["address"] else given["address"]
        local, host = self.port, address
        if ssh.kind_of(self.action._connection) == "ssh":
            local, host = self.start(f"{address}:{self.port}"), LOOPBACK
        url = f"{given['scheme']}://{host}:{local}{given['path']}"
        note = "" if local == self.port else f" (port {self.port} of the controller is in use)"
        progress.show_line(f"  {url}{note}")
        progress.show_line("  press Ctrl-C to close the forward; the run continues")

    def start(self, target: str) -> int:
        """Start ssh and return the local port, the same as the machine's if it is free."""
        for wanted in [self.port, *[0] * (TRIES - 1)]:
            local = free_port(wanted) or free_port(0)
            if self.listens(local, target) or self.interrupted.is_set():
                return local
            if IN_USE not in self.messages():
                break
        raise AnsibleActionFail(self.problem())

    def listens(self, local: int, target: str) -> bool:
        """Start ssh; return whether it listens on the local port before it exits or the time is over."""
        command = ssh.command(self.action, options=(*OPTIONS, *LISTENS, "-L", f"{LOOPBACK}:{local}:{target}"))
        for file in (self.output, self.errors):
            file.seek(0)
            file.truncate()
        connection = self.action._connection
        password = connection.get_option("password") or self.action._play_context.password
        settings = {name: value for name, value in connection._init_shm().items() if name == "env"}
        pipe = connection.sshpass_pipe if command[0] == "sshpass" else ()
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.errors, pass_fds=pipe, **settings
        )
        if pipe:
            with open(pipe[1], "wb") as file, contextlib.suppress(BrokenPipeError):
                os.close(pipe[0])
                file.write(password.encode() + b"\n")
        deadline = time.monotonic() + START_SECONDS
        try:
            while self.process.poll() is None and time.monotonic() < deadline:
                if "listens" in text_of(self.output):
                    return True
                time.sleep(POLL_SECONDS)
        finally:
            if shared := getattr(connection, "shm", None):  # has the password for ssh's askpass
                with contextlib.suppress(FileNotFoundError):
                    shared.unlink()
        self.close()
        return False

    def messages(self) -> str:
        """Return what ssh has reported."""
        return text_of(self.errors)

    def problem(self) -> str:
        """Return a sentence on why ssh failed."""
        words = " ".join(self.messages().split()[-60:])
        if REFUSED in words:
            return (
                f"The machine's sshd does not permit the forward of port {self.port}. Set 'AllowTcpForwarding local' in its "
                "sshd_config (and PermitOpen, if it is set)."
            )
        return f"The forward of port {self.port} was closed: {words or 'ssh exited without a message'}"


def text_of(file: IO[bytes]) -> str:
    """Return what a process has written to a file so far."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode(errors="replace")


def free_port(port: int) -> int:
    """Return the port if nothing listens on it on the controller's loopback, else 0. Of 0, return a free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections do not keep a port in use
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return 0
        found: int = probe.getsockname()[1]
        return found
