"""The documentation of the action ``tf_program``, which runs on the controller only."""

from __future__ import annotations

DOCUMENTATION = """
module: tf_program
short_description: Call a program that answers in JSON, and show its progress
description:
  - Sends only the call and no code, so it takes 0.1 s where a module takes 0.3 s.
  - The program prints a JSON object as its last line. The action shows its C(lines). If there is C(next), it calls the program
    again with these arguments, and with O(script) if there is one. If the program prints nothing for long, the action shows
    C(seconds), the time that has passed. It writes C(files) to O(save_to).
  - C(fetch) has files for O(save_to). A few megabytes are a tar file in base64 (C(data)). More are fetched with rsync over the
    task's connection; an interrupted transfer is continued.
  - With C(failure), a sentence, the task fails.
  - With C(forward), it forwards C(port) at C(address) of the machine to the controller and shows the URL, which has C(scheme)
    and C(path). See O(forward).
options:
  argv:
    description:
      - The program and its arguments. C(python) stands for the Python that runs Ansible's modules. A module
        C(tf_cluster.<stage>) is called with the Python of the machine's tasks.
    type: list
    elements: str
    required: true
  send:
    description:
      - Files and folders of the controller that are sent as a tar file to the program's standard input. If the first one is a
        folder, its content is sent. Links in it are followed.
      - Those that do not fit into a few megabytes are sent with rsync before the call, over the task's connection.
    type: list
    elements: path
  put: {description: A large file for a program that runs as root. Its path on the machine becomes the last argument, type: path}
  send_call: {description: Arguments of C(tf_cluster.transfer) for what is sent with rsync, type: list, elements: str}
  send_keys:
    description: Path in O(send) -> path under which the machine keeps it, if the path differs in each call.
    type: dict
  script: {description: A program of the controller that Python reads from standard input, type: path}
  input:
    description:
      - Data for the program's standard input. It is sent as JSON; with O(send), as the first line before the tar file.
      - Use it for data that grows with the cluster, because the length of a command line is limited.
    type: raw
  save_to: {description: Folder of the controller for the program's files, type: path}
  announce: {description: A line that is shown before the call, type: str}
  forward:
    description:
      - Whether the program may forward a port. Then the program is called until its answer has no C(next), or until Ctrl-C, which
        is not an error.
    type: bool
    default: false
  reconnect:
    description: Whether the call is repeated if the connection breaks, for example because the machine restarts.
    type: bool
    default: false
  statuses: {description: Exit statuses that come with an answer, type: list, elements: int, default: [0]}
author: [Distributed TensorFlow by Ansible]
"""

EXAMPLES = """
- name: Check that every task answers
  distributed.tensorflow.tf_program:
    argv: [tf_cluster.ready, --json]
    statuses: [0, 1]
"""

RETURN = """
answer: {description: The answer of the last call, type: dict, returned: always}
"""
