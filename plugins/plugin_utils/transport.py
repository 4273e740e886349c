"""Connect rsync with a machine: the program that rsync starts as its remote shell (``--rsh``).

The first argument is a file descriptor with a JSON object: ``command`` starts the machine's end, where PLACE stands for the
arguments of rsync's server, and ``password`` is for sudo and the like, empty if they need none. It is sent before anything else:
the machine's end (tf_cluster/transfer) skips it if nobody has read it. What the machine prints before its end is ready, such as
the greeting of a login script, is skipped here. Standard library only.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import select
import subprocess
import sys
import threading
import time

PLACE = "ARGUMENTS-OF-RSYNC"
# As in tf_cluster/transfer/transfer.py.
READY, BEGIN, WAITING = b"tf_cluster.transfer: ready", b"tf_cluster.transfer: begin\n", b"tf_cluster.transfer: waiting "
START_SECONDS = 60.0  # without a line of the machine, until the start times out
CHUNK_BYTES = 65536  # what a pipe holds; with 1 MiB, Python takes 0.8 s more for 1 GiB


def main() -> None:
    """Start the machine's end, pass rsync's bytes in both directions, and exit with its status."""
    with open(int(sys.argv[1]), encoding="utf-8") as file:
        plan = json.load(file)
    # sys.argv[2] is rsync's name of the machine; the command has the real one.
    arguments = base64.urlsafe_b64encode(json.dumps(sys.argv[3:]).encode()).decode()
    command = [word.replace(PLACE, arguments) for word in plan["command"]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        there, back = process.stdin.fileno(), process.stdout.fileno()  # type: ignore[union-attr]  # pipes
        if plan["password"]:
            os.write(there, plan["password"].encode() + b"\n")
        if not wait_until_ready(back):
            process.kill()
            os._exit(max(1, process.wait()))
        os.write(there, BEGIN)
        for descriptor in (0, 1):
            os.set_blocking(descriptor, True)  # rsync assumes that its remote shell polls
        # A daemon: when the machine's end has exited, rsync may still have this input open.
        threading.Thread(target=relay, args=(0, there), daemon=True).start()
        relay(back, 1)
        os._exit(process.wait() & 0xFF)  # the thread may be blocked in a system call


def wait_until_ready(source: int) -> bool:
    """Skip lines until the machine's end is ready; return whether it became so. Reports that it waits go to standard error."""
    line, deadline = b"", time.monotonic() + START_SECONDS
    while True:
        if not select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
            print(f"the machine did not start the transfer within {START_SECONDS:.0f} s", file=sys.stderr)
            return False
        byte = os.read(source, 1)  # one at a time: after the line, the bytes are rsync's
        line += byte
        if not byte:
            return False
        if byte == b"\n":
            if line.strip() == READY:
                return True
            if line.startswith(WAITING):
                os.write(2, line)
            line, deadline = b"", time.monotonic() + START_SECONDS


def relay(source: int, target: int) -> None:
    """Pass bytes until the end of ``source`` or until nobody reads them, then close ``target``."""
    try:
        while data := os.read(source, CHUNK_BYTES):
            view = memoryview(data)
            while view:
                view = view[os.write(target, view) :]
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            raise
    os.close(target)


if __name__ == "__main__":
    main()
