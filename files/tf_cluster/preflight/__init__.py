"""Facts of a machine before it is changed."""
