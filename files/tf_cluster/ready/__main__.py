"""``python -m tf_cluster.ready``: see gate.py."""

from .gate import main

main()
