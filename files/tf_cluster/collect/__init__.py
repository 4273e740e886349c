"""What a machine has of a run, on its way to the controller."""
