#!/usr/bin/python
"""Write several small text files in one task, because each task takes 0.3 s per machine."""

from __future__ import annotations

import glob
import grp
import os
import tempfile

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: write_files
short_description: Write several small text files in one task
description:
  - Like C(ansible.builtin.copy) with C(content), for many files. Each is replaced as a whole or not at all.
  - Supports check mode and diff mode.
options:
  files:
    description: The files. Missing parent folders are created, with mode 0755.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Absolute path, type: path, required: true}
      content: {description: The text, type: str, required: true}
      mode: {description: Permissions, type: str, default: "0644"}
  only:
    description: Patterns. Files that match one and are not in O(files) are removed, and folders that become empty.
    type: list
    elements: str
    default: []
author: [Distributed TensorFlow by Ansible]
"""

EXAMPLES = """
- name: Write two files
  distributed.tensorflow.write_files:
    files:
      - {path: /etc/tf-cluster/config.json, content: "{}"}
      - {path: /opt/tf-cluster/lib/tf_cluster/cli.py, content: "import sys"}
"""

RETURN = """
paths: {description: The files that were written or removed, type: list, elements: str, returned: always}
"""


def read(path: str) -> str | None:
    """Return the text of a file, or None if it is missing."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None


def is_up_to_date(path: str, content: str, mode: int) -> bool:
    """Return whether the file has this content and mode, and root as its owner."""
    if read(path) != content:
        return False
    found = os.stat(path)
    return found.st_mode & 0o7777 == mode and (os.geteuid() != 0 or found.st_uid == found.st_gid == 0)


def remove_if_empty(folder: str) -> None:
    """Remove a folder if it is empty."""
    if not os.listdir(folder):
        os.rmdir(folder)


def write(module: AnsibleModule, path: str, content: str, mode: int) -> None:
    """Replace the file atomically."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(content)
    os.chmod(temporary, mode)
    module.atomic_move(temporary, path)
    os.chmod(path, mode)
    if os.geteuid() == 0:
        os.chown(path, 0, grp.getgrgid(0).gr_gid)


def main() -> None:
    """Run the module."""
    file_options = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True},
        "mode": {"type": "str", "default": "0644"},
    }
    module = AnsibleModule(
        {
            "files": {"type": "list", "elements": "dict", "options": file_options, "required": True},
            "only": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    os.umask(0o022)
    wanted = {file["path"]: file for file in module.params["files"]}
    matching = [path for pattern in module.params["only"] for path in glob.glob(pattern, recursive=True)]
    extra = {path for path in matching if os.path.isfile(path)} - set(wanted)
    paths, diffs = [], []
    try:
        for path, file in wanted.items():
            try:
                mode = int(file["mode"], 8)
            except ValueError:
                module.fail_json(msg=f"{path}: invalid mode {file['mode']!r}. Use digits, as in '0644'.")
            if is_up_to_date(path, file["content"], mode):
                continue
            paths.append(path)
            diffs.append({"before_header": path, "after_header": path, "before": read(path) or "", "after": file["content"]})
            if not module.check_mode:
                write(module, path, file["content"], mode)
        for path in sorted(extra):
            paths.append(path)
            diffs.append({"before_header": path, "after_header": path, "before": read(path) or "", "after": ""})
            if not module.check_mode:
                os.remove(path)
                remove_if_empty(os.path.dirname(path))
    except OSError as error:
        module.fail_json(msg=f"{error.filename or path} could not be written: {error.strerror}", paths=paths)
    module.exit_json(changed=bool(paths), paths=paths, diff=diffs)


if __name__ == "__main__":
    main()
