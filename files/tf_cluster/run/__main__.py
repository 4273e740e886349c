"""``python -m tf_cluster.run``: see program.py."""

from .program import main

main()
