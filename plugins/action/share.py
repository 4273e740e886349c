"""Give all machines of a play the same variable."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible has no types
    """The action."""

    _supports_check_mode = True
    _supports_async = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the value as the result, for ``register``."""
        result = super().run(tmp, task_vars)
        _checked, options = self.validate_argument_spec({"value": {"type": "dict", "required": True}})
        return {**result, **options["value"], "changed": False}
