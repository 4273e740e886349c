"""Collect the files of a run from a machine."""
