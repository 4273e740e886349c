"""What systemd knows of the tasks and runs of a machine."""
