"""``python -m tf_cluster.report``: see report.py."""

from .report import main

main()
