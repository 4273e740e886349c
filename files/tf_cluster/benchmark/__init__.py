"""Measure the links and tasks of a cluster."""
