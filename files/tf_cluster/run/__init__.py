"""Run programs on the cluster."""
