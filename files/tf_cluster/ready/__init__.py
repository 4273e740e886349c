"""Check that every task of the cluster answers."""
