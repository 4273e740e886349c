"""The cluster spec: job -> list of ``address:port``."""
