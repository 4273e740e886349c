"""Write the verdict and the report of a collected run, and show its summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible_collections.distributed.tensorflow.plugins.module_utils.tf_cluster.report import report
from ansible_collections.distributed.tensorflow.plugins.plugin_utils import progress


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible has no types
    """The action."""

    _supports_check_mode = False
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Write the files and show the summary."""
        result = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec(
            {
                "folder": {"type": "path", "required": True},
                "outcome": {"type": "dict", "required": True},
                "tasks": {"type": "list", "elements": "dict", "required": True},
                "required": {"type": "bool", "default": True},
                "skipped": {"type": "list", "elements": "str", "default": []},
            }
        )
        try:
            made = report.write(Path(options["folder"]), json.loads(json.dumps(options)))  # without Ansible's types
        except OSError as error:
            return {
                **result,
                "failed": True,
                "msg": f"{error.filename or options['folder']} could not be written: {error.strerror}",
            }
        for line in made["lines"]:
            progress.show_line(f"  {line}")
        failed = {"failed": True, "msg": made["failure"]} if made["failure"] else {}
        return {**result, "changed": True, "verdict": made["verdict"], **failed}
