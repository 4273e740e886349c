"""The documentation of the action ``write_report``, which runs on the controller only."""

from __future__ import annotations

DOCUMENTATION = """
module: write_report
short_description: Write the verdict and the report of a collected run
description:
  - Writes C(verdict.json), C(report.html) and C(summary.txt), shows the summary, and updates the link C(latest) beside the folder
    unless it points to a newer run. Fails with the verdict's reasons.
options:
  folder: {description: The run's folder on the controller, type: path, required: true}
  outcome: {description: "How the run ended, from C(tf_cluster.run) or C(tf_cluster.collect)", type: dict, required: true}
  tasks: {description: "The tasks' answers before the run, from C(tf_cluster.ready)", type: list, elements: dict, required: true}
  required:
    description: Whether a failed run is a failure. Results that could not be collected always are.
    type: bool
    default: true
  skipped: {description: Machines that C(--limit) leaves out, type: list, elements: str, default: []}
author: [Distributed TensorFlow by Ansible]
"""

EXAMPLES = """
- name: Write the verdict and the report
  distributed.tensorflow.write_report:
    folder: output/20260102-101500-demo-1f2e
    outcome: "{{ run_result.answer.outcome }}"
    tasks: "{{ ready_result.answer.tasks }}"
"""

RETURN = """
verdict: {description: The content of verdict.json, type: dict, returned: always}
"""
