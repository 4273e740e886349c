"""``python -m tf_cluster.collect``: see results.py."""

from .results import main

main()
