"""The playbook cluster.yml: what it gives the roles."""

import jinja2
import pytest
import yaml
from project import ROOT, load

filters = load("plugins/filter/cluster_peers.py")
PLAYS = yaml.safe_load((ROOT / "playbooks/cluster.yml").read_text(encoding="utf-8"))
TASKS = [task for play in PLAYS for task in play.get("tasks", [])]
CLUSTER = {"machines": {"m": [{"address": "no-such-machine.invalid", "port": 2222, "job": "worker"}]}}


def peers(open_machines=()):
    """Return the firewall's peers as a template of the playbook gives them."""
    [task] = [task for task in TASKS if "firewall_peers" in task.get("vars", {})]
    environment = jinja2.Environment(autoescape=True)
    environment.filters |= {"distributed.tensorflow.cluster_peers": filters.cluster_peers}
    expression = task["vars"]["firewall_peers"].strip().removeprefix("{{").removesuffix("}}")
    return environment.compile_expression(expression)(
        spec_cluster={**CLUSTER, "open_machines": open_machines}, inventory_hostname="m"
    )


def test_unresolvable_names_are_accepted_without_a_firewall():
    assert peers(open_machines=["m"]) == {"ipv4": [], "ipv6": []}


def test_an_unresolvable_name_is_an_error_with_a_firewall():
    with pytest.raises(ValueError, match="no-such-machine"):
        peers()
