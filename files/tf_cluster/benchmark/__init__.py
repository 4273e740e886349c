"""How fast the links and tasks of a cluster are."""
