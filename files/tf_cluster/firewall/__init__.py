"""The firewall that protects the tasks of a machine."""
