#!/usr/bin/env python3
"""Run the TensorFlow server of one task of the cluster until SIGTERM, with the seed's command line.

create_server.py --task=1                      job "worker", ./config.json
create_server.py --job ps --task 0 --config /etc/tf-cluster/config.json
"""

from tf_cluster.server.server import main

main()
