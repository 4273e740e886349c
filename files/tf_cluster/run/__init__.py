"""Executing a program on the cluster."""
