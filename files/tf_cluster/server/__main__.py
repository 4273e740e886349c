"""``python -m tf_cluster.server``: see server.py."""

from .server import main

main()
