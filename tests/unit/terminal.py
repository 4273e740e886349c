"""A terminal for tests, with a person who presses keys."""

import os
import pty
import select
import signal
import time


def on_terminal(command, folder, settings, until, press, seconds=60):
    """Run a command on a terminal, and return its exit status and what it printed.

    When it has printed the text ``until``, ``press`` is called with what it has printed, and returns the keys to press.
    """
    process, terminal = pty.fork()
    if not process:
        os.chdir(folder)
        os.execvpe(str(command[0]), [str(word) for word in command], settings)
    text, pressed, deadline = "", False, time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                data = read(terminal)
                if not data:
                    break
                text += data.decode(errors="replace")
            elif not pressed and until in text:
                pressed = True
                os.write(terminal, press(text))
        else:
            raise AssertionError(f"it is still running: {text}")
    except BaseException:
        os.kill(process, signal.SIGTERM)
        raise
    finally:
        status = os.waitpid(process, 0)[1]
        os.close(terminal)
    return os.waitstatus_to_exitcode(status), text


def read(terminal):
    """Return what was printed, nothing if the command has exited."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
