"""What a machine is like before anything is changed."""
