"""The environment that TensorFlow is installed in, and its C API."""
