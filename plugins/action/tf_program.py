"""Call one of the project's programs on a machine and go on until it has done what was asked."""

from __future__ import annotations

import base64
import fcntl
import glob
import json
import os
import re
import shlex
import shutil
import tarfile
import tempfile
import time
from collections.abc import Container, Iterable
from pathlib import Path
from typing import IO, Any

from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.executor.interpreter_discovery import discover_interpreter
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

# With input, however little, ssh gives the program no terminal: its errors and its answer stay apart.
NOTHING = b"\n"
PIECE = 8 * 1024 * 1024  # bytes that go over in one call
TELL = 10  # seconds between two lines that say what is waited for
STUCK = 600  # seconds without anything new after which another collection is not waited for any more
SILENT = 5  # seconds after which a person wants to know whether it still goes on
STEP = re.compile(r"step [0-9]+ of [0-9]+")  # as the helper for programs prints it
ABSENT = re.compile(r"(?:No module named '?|module specification for ')(tf_cluster[a-z_.]*)")  # as Python says it
NOT_FOUND = 127  # what a shell says of a program that is not there
JSON_CALLBACKS = ("json", "jsonl")  # of ansible.posix
DISCOVERED = "discovered_interpreter_python"  # as Ansible calls it


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible has no types
    """The action."""

    _supports_check_mode = False
    _supports_async = False
    reconnects = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call, show, fetch, and call again until there is no ``next``."""
        result = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(
            {
                "argv": {"type": "list", "elements": "str", "required": True},
                "send": {"type": "list", "elements": "path"},
                "send_call": {"type": "list", "elements": "str"},
                "put": {"type": "path"},
                "script": {"type": "path"},
                "input": {"type": "raw"},
                "save_to": {"type": "path"},
                "announce": {"type": "str"},
                "reconnect": {"type": "bool", "default": False},
                "statuses": {"type": "list", "elements": "int", "default": [0]},
            }
        )
        argv, self.reconnects = options["argv"], options["reconnect"]
        if argv[0] == "python":
            python, facts = self.python(task_vars or {})
            argv, result = [*python, *argv[1:]], result | facts
        try:
            return {**result, "changed": True, "answer": self.call_until_done(argv, options)}
        except AnsibleActionFail as error:
            # Returned, not raised: Ansible applies failed_when, ignore_errors and register only to a result.
            return {**result, "failed": True, "msg": error.message}

    def call_until_done(self, argv: list[str], options: dict[str, Any]) -> dict[str, Any]:
        """Call a program, and again as long as it answers with ``next``; return what it answered."""
        gathered: dict[str, Any] = {}
        program = program_of(argv)
        if options["send"]:
            data = self.send([Path(path) for path in options["send"]], [*program, *(options["send_call"] or [])])
        elif options["script"]:
            data = Path(options["script"]).read_bytes()
        else:
            data = b"" if options["input"] is not None else NOTHING
        if options["input"] is not None:
            data = json.dumps(options["input"]).encode() + b"\n" + data
        if options["announce"]:
            show_line(f"  {options['announce']}")
        last = [self.put(options["put"])] if options["put"] else []
        silence, again = Silence(), True
        while True:
            answer = self.call([*argv, *last], data, options["statuses"])
            for line in answer.get("lines", []):
                show_line(f"  {line}")
            silence.show(answer.get("lines", []), answer.get("seconds") if "next" in answer else None)
            if answer.get("fetch") and not self.fetch(program, answer["fetch"], Path(options["save_to"])):
                if not again:
                    raise AnsibleActionFail("somebody else collects the same run at this moment: try again later")
                again = False
                continue
            for name, text in answer.get("files", {}).items():
                write_below(Path(options["save_to"]), name, text)
            gathered.update({name: value for name, value in answer.items() if name not in ("lines", "next", "fetch", "files")})
            if answer.get("failure"):
                raise AnsibleActionFail(answer["failure"])
            if "next" not in answer:
                return gathered
            argv, data = [*program, *answer["next"]], data if options["script"] else NOTHING

    def python(self, task_vars: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        """Return the machine's Python as Ansible finds it for its modules, and as a result what had to be found out for that."""
        wanted = self._templar.template(constants.config.get_config_value("INTERPRETER_PYTHON", variables=task_vars))
        if not wanted.startswith("auto"):
            return shlex.split(wanted), {}
        found = task_vars.get("ansible_facts", {}).get(DISCOVERED) or discover_interpreter(self, "python", wanted, task_vars)
        return [found], {"ansible_facts": {DISCOVERED: found}}

    def call(self, argv: list[str], data: bytes, statuses: Container[int]) -> dict[str, Any]:
        """Call the program once and return its answer."""
        try:
            done = self._low_level_execute_command(shlex.join(argv), sudoable=True, in_data=data)
        except AnsibleConnectionFailure:
            if not self.reconnects:
                raise
            self._connection.reset()
            done = self._low_level_execute_command(shlex.join(argv), sudoable=True, in_data=data)
        missing = argv[0] if done["rc"] == NOT_FOUND else (ABSENT.search(done["stderr"]) or (None, None))[1]
        if missing:
            raise AnsibleActionFail(
                f"{missing} is missing on this machine, which is not part of the cluster yet. Run 'ansible-playbook site.yml'."
            )
        if done["rc"] not in statuses:
            said = (done["stderr"] or done["stdout"]).strip().splitlines()
            name = os.path.basename(program_of(argv)[-1])
            own = [line.removeprefix(f"{name}: ") for line in said if line.startswith(f"{name}: ")]
            raise AnsibleActionFail(own[-1] if own else f"{name} ended with status {done['rc']}: {' '.join(said[-3:])}")
        try:
            answer: dict[str, Any] = json.loads(done["stdout"].strip().splitlines()[-1])
        except (ValueError, IndexError, RecursionError):
            raise AnsibleActionFail(f"{argv} did not answer in JSON: {done['stdout'][-300:]}") from None
        return answer

    def put(self, path: str) -> str:
        """Send a file as it is, which Ansible removes after the task, and return where it lies on the machine."""
        place: str = self._connection._shell.join_path(self._make_tmp_path(), os.path.basename(path))
        self._transfer_file(path, place)
        return place

    def send(self, paths: list[Path], call: list[str]) -> bytes:
        """Return files and folders as a tar file; where it is large, send it before and return nothing."""
        with tempfile.TemporaryFile() as file:
            pack(paths, file)
            size = file.tell()
            file.seek(0)
            if size <= PIECE:
                return file.read()
            progress = Progress("sent", size)
            for offset in range(0, size, PIECE):
                self.call([*call, "--offset", str(offset)], file.read(PIECE), [0])
                progress.show(offset)
        return NOTHING

    def fetch(self, program: list[str], given: dict[str, Any], folder: Path) -> bool:
        """Bring a tar file of the machine's here, piece by piece, and unpack it, nothing outside the folder.

        Returns false where the machine does not have this file any more: somebody else has collected the run meanwhile.
        """
        local = folder.parent / f".{folder.name}.{'whole' if 'data' in given else given['made']}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            progress = Progress("collected", given["size"])
            with local.open("a+b") as file:
                wait_for_lock(file)
                if not os.fstat(file.fileno()).st_nlink:
                    return True  # the one that was waited for has unpacked it, and removed it
                if "data" in given:
                    file.truncate(0)
                    file.write(base64.b64decode(given["data"]))
                while file.seek(0, os.SEEK_END) < given["size"]:
                    call = [*program, *given["call"], "--made", str(given["made"]), "--offset", str(file.tell())]
                    answer = self.call(call, NOTHING, [0])
                    if not answer["data"]:
                        return False
                    file.write(base64.b64decode(answer["data"]))
                    progress.show(file.tell())
                file.seek(0)
                with tarfile.open(fileobj=file) as tar:
                    members = [checked(member) for member in tar]
                    make_way(folder, members)
                    tar.extractall(folder, members=members)
                # Before another gets the lock; also what is left of earlier files of the run.
                for part in folder.parent.glob(f".{glob.escape(folder.name)}.*.part"):
                    part.unlink(missing_ok=True)
                return True
        except OSError as error:
            raise AnsibleActionFail(
                f"{error.filename or local} could not be written ({error.strerror}); what the run left stays on its machine, and "
                f"'ansible-playbook playbooks/collect.yml -e run={folder.name}' goes on from here"
            ) from None


def show_line(line: str) -> None:
    """Print a line; to standard error if standard output is the JSON of a callback plugin."""
    callback = str(constants.config.get_config_value("DEFAULT_STDOUT_CALLBACK")).rpartition(".")[2]
    Display().display(line, stderr=callback in JSON_CALLBACKS)


def program_of(argv: list[str]) -> list[str]:
    """Return the words of a call that name the program: as far as a module after -m, a script, or - for standard input."""
    for place, word in enumerate(argv):
        if word == "-m":
            return argv[: place + 2]
        if word == "-" or word.endswith(".py"):
            return argv[: place + 1]
    return argv[:1]


def wait_for_lock(file: IO[bytes]) -> None:
    """Lock a file that another collection may be filling; say that it is waited for, and raise where nothing comes any more."""
    size, grown, due = -1, time.monotonic(), time.monotonic() + TELL
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            now, before, size = time.monotonic(), size, os.fstat(file.fileno()).st_size
            grown = grown if size == before else now
            if now - grown > STUCK:
                raise AnsibleActionFail(
                    f"another ansible-playbook collects the same run into {file.name}, and nothing has come for {STUCK} s: "
                    "'lslocks' names it; end it, and collect the run again"
                ) from None
            if now >= due:
                due = now + TELL
                show_line(f"  waits for another ansible-playbook that collects the same run ({size // 1_000_000} MB so far)")
        time.sleep(0.1)


class Silence:
    """Says every ten seconds that something which prints nothing still goes on, and how far it said that it was."""

    def __init__(self) -> None:
        self.step, self.printed, self.due = "", time.monotonic(), 0.0

    def show(self, lines: list[str], seconds: float | None) -> None:
        """Take note of what was printed; after more than a few seconds without, say so (``seconds``: for how long it runs)."""
        now = time.monotonic()
        if lines:
            self.printed = now
            steps = [found[0] for line in lines if (found := STEP.match(line))]
            self.step = f"{steps[-1]}, " if steps else self.step
        elif seconds is not None and now - self.printed >= SILENT and now >= self.due:
            self.due = now + 10
            show_line(f"  ... {seconds:.0f} s, {self.step}nothing printed for {now - self.printed:.0f} s")


class Progress:
    """Says every few seconds how much of a large file has gone over."""

    def __init__(self, verb: str, size: int) -> None:
        self.verb, self.size, self.due = verb, size, time.monotonic() + 3

    def show(self, done: int) -> None:
        """Say it, if it is time to."""
        if time.monotonic() >= self.due:
            self.due = time.monotonic() + 3
            show_line(f"  {self.verb} {done // 1_000_000} of {self.size // 1_000_000} MB")


def pack(paths: Iterable[Path], file: IO[bytes]) -> None:
    """Write files and folders into a tar file; the content of a folder that comes first, without its name."""
    with tarfile.open(fileobj=file, mode="w", dereference=True) as tar:
        for place, path in enumerate(paths):
            if not path.exists():
                raise AnsibleActionFail(f"{path} does not exist on the controller")
            # The name that it was given, also where that is a link: by this name the program is started.
            add(tar, path, "." if path.is_dir() and place == 0 else Path(os.path.abspath(path)).name)


def add(tar: tarfile.TarFile, path: Path, name: str, above: tuple[Path, ...] = ()) -> None:
    """Add a file, or a folder with its content; what links lead to as if it lay here. ``above``: the folders that it lies in."""
    real = path.resolve()
    if real in above:
        raise AnsibleActionFail(f"{path} is a link to a folder that it lies in: it can be sent without the link alone")
    if path.name == "__pycache__" or not path.exists():
        return  # a link that leads nowhere, as editors make them
    tar.add(path, name, recursive=False)
    if path.is_dir():
        for inner in sorted(path.iterdir()):
            add(tar, inner, f"{name}/{inner.name}", (*above, real))


def checked(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member of a tar file from a machine, or raise: only files and folders, and nothing outside."""
    parts = member.name.split("/")
    if not (member.isfile() or member.isdir()) or ".." in parts or not parts[0]:
        raise AnsibleActionFail(f"the machine sent {member.name!r}, which does not belong into a run's folder")
    member.mode, member.uid, member.gid = 0o755 if member.isdir() else 0o644, os.getuid(), os.getgid()
    member.uname = member.gname = ""
    return member


def make_way(folder: Path, members: Iterable[tarfile.TarInfo]) -> None:
    """Remove what was collected earlier as a file where a folder comes now, or the other way round; never the folder itself."""
    for member in members:
        path = folder / member.name
        if folder in path.parents and os.path.lexists(path) and path.is_dir() != member.isdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def write_below(folder: Path, name: str, text: str) -> None:
    """Write a file below the folder and nowhere else."""
    path = (folder / name).resolve()
    if folder.resolve() not in path.parents:
        raise AnsibleActionFail(f"{name} lies outside {folder}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
