"""``python -m tf_cluster.status``: see units.py."""

from .units import main

main()
