"""Call one of the project's programs on a machine until its answer has no ``next``."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shlex
import shutil
import tarfile
from collections.abc import Container
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.executor.interpreter_discovery import discover_interpreter
from ansible.plugins.action import ActionBase
from ansible_collections.distributed.tensorflow.plugins.plugin_utils import archive, forwarding, progress, rsync

# With any input, ssh gives the program no terminal, so that stderr and stdout stay separate.
NOTHING = b"\n"
TASK_PYTHON = ("/opt/tf-cluster/venv/bin/python", "-I", "-m")
SMALL_BYTES = 4_000_000  # are part of a call; rsync transfers larger files
ABSENT = re.compile(r"(?:No module named '?|module specification for ')(tf_cluster[a-z_.]*)")  # Python's messages
HANDLED = ("lines", "next", "fetch", "files", "forward")  # parts of an answer that are not returned
NOT_FOUND = 127  # exit status of a shell for a missing program
DISCOVERED = "discovered_interpreter_python"  # name of Ansible's fact


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible has no types
    """The action."""

    _supports_check_mode = False
    _supports_async = False
    reconnects = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the program, show its lines and fetch its files, until there is no ``next``."""
        result = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(
            {
                "argv": {"type": "list", "elements": "str", "required": True},
                "send": {"type": "list", "elements": "path"},
                "send_call": {"type": "list", "elements": "str"},
                "send_keys": {"type": "dict"},
                "put": {"type": "path"},
                "script": {"type": "path"},
                "input": {"type": "raw"},
                "save_to": {"type": "path"},
                "announce": {"type": "str"},
                "forward": {"type": "bool", "default": False},
                "reconnect": {"type": "bool", "default": False},
                "statuses": {"type": "list", "elements": "int", "default": [0]},
            }
        )
        argv, self.reconnects = options["argv"], options["reconnect"]
        if argv[0] == "python":
            python, facts = self.python(task_vars or {})
            argv, result = [*python, *argv[1:]], result | facts
        elif argv[0].startswith("tf_cluster."):
            argv = [*TASK_PYTHON, *argv]
        try:
            return {**result, "changed": True, "answer": self.call_until_done(argv, options)}
        except AnsibleActionFail as error:
            # Returned, not raised: Ansible applies failed_when, ignore_errors and register only to a result.
            return {**result, "failed": True, "msg": error.message}

    def call_until_done(self, argv: list[str], options: dict[str, Any]) -> dict[str, Any]:
        """Call a program until its answer has no ``next``, and return the combined answers."""
        combined: dict[str, Any] = {}
        program = program_of(argv)
        if options["send"]:
            data = self.send([Path(path) for path in options["send"]], options["send_call"] or [], options["send_keys"] or {})
        elif options["script"]:
            data = Path(options["script"]).read_bytes()
        else:
            data = b"" if options["input"] is not None else NOTHING
        if options["input"] is not None:
            data = json.dumps(options["input"]).encode() + b"\n" + data
        if options["announce"]:
            progress.show_line(f"  {options['announce']}")
        last = [self.put(options["put"])] if options["put"] else []
        silence = progress.Silence()
        with forwarding.Forward(self) if options["forward"] else contextlib.nullcontext() as forward:
            while not (forward and forward.is_over()):
                answer = self.call([*argv, *last], data, options["statuses"])
                for line in answer.get("lines", []):
                    progress.show_line(f"  {line}")
                silence.show(answer.get("lines", []), answer.get("seconds") if "next" in answer else None)
                if answer.get("fetch"):
                    self.fetch(answer["fetch"], Path(options["save_to"]))
                for name, text in answer.get("files", {}).items():
                    archive.write_below(Path(options["save_to"]), name, text)
                combined.update({name: value for name, value in answer.items() if name not in HANDLED})
                if answer.get("failure"):
                    raise AnsibleActionFail(answer["failure"])
                if forward and "forward" in answer:
                    forward.open(answer["forward"])
                if "next" not in answer:
                    break
                argv, data = [*program, *answer["next"]], data if options["script"] else NOTHING
        return combined

    def python(self, task_vars: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        """Return the Python that Ansible uses for modules on the machine, and the facts if it had to be discovered."""
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
            lines = (done["stderr"] or done["stdout"]).strip().splitlines()
            name = os.path.basename(program_of(argv)[-1])
            starts = (f"{name}: ", f"{name.rpartition('.')[2]}.py: ")  # the second one is that of a module in a subpackage
            own = [line.partition(": ")[2] for line in lines if line.startswith(starts)]
            raise AnsibleActionFail(own[-1] if own else f"{name} exited with status {done['rc']}: {' '.join(lines[-3:])}")
        try:
            answer: dict[str, Any] = json.loads(done["stdout"].strip().splitlines()[-1])
        except (ValueError, IndexError, RecursionError):
            raise AnsibleActionFail(f"{argv} did not answer in JSON: {done['stdout'][-300:]}") from None
        return answer

    def put(self, path: str) -> str:
        """Send a file, which Ansible removes after the task, and return its path on the machine."""
        target: str = self._connection._shell.join_path(self._make_tmp_path(), os.path.basename(path))
        self._transfer_file(path, target)
        return target

    def send(self, paths: list[Path], call: list[str], keys: dict[str, str]) -> bytes:
        """Return files and folders as a tar file. Those that are too large for it are sent with rsync.

        The first path is the program. ``call``: words of the machine's end of rsync. ``keys``: path -> path that it is kept as
        on the machine, if it is another one.
        """
        transfer, room = rsync.Rsync(self, TASK_PYTHON), SMALL_BYTES
        transfer.check()  # also for a small program, whose results may be large
        packed = []
        for path in paths:
            size = archive.listed(path).packed
            if size <= room:
                room -= size
                packed.append(path)
            else:
                transfer.send(path, call, keys.get(str(path), str(path)), top=path is paths[0] and path.is_dir())
        with io.BytesIO() as file:
            archive.pack(packed, file, program=paths[0])
            return file.getvalue()

    def fetch(self, given: dict[str, Any], folder: Path) -> None:
        """Fetch files from the machine into the folder: as a tar file in ``data``, or with rsync."""
        if "data" not in given:
            rsync.Rsync(self, TASK_PYTHON).fetch(given["call"], given, folder)
            return
        part = rsync.part_of(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with rsync.only_one(part), tarfile.open(fileobj=io.BytesIO(base64.b64decode(given["data"]))) as tar:
                members = [archive.check_member(member) for member in tar]
                archive.remove_conflicts(folder, members)
                tar.extractall(folder, members=members)
                shutil.rmtree(part)  # may have files of an interrupted transfer
        except OSError as error:
            sentence = f"{error.filename or folder} could not be written ({error.strerror})"
            raise AnsibleActionFail(rsync.unfinished(sentence, folder)) from None


def program_of(argv: list[str]) -> list[str]:
    """Return the part of a call that names the program: up to a module after -m, a script, or - for standard input."""
    for place, word in enumerate(argv):
        if word == "-m":
            return argv[: place + 2]
        if word == "-" or word.endswith(".py"):
            return argv[: place + 1]
    return argv[:1]
