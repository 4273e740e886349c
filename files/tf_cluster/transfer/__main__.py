"""``python -m tf_cluster.transfer``: see transfer.py."""

from .transfer import main

main()
