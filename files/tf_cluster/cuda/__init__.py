"""The NVIDIA GPUs of a machine."""
