"""The encrypted tunnel between the cluster's machines."""
