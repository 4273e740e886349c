"""Who may reach the tasks of a machine."""
