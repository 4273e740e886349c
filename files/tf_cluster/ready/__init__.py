"""Whether every task of the cluster answers."""
