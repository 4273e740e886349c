"""The TensorFlow server of one task."""
