"""run/partial.py: how a program's server and its sessions are changed. The message classes here are small ones of their names."""

from types import SimpleNamespace

import pytest
from project import load

tf_partial = load("tf_cluster.run.partial")


class Job:
    """Stands for a job of a ClusterDef."""

    def __init__(self, name, tasks=()):
        self.name, self.tasks = name, dict(enumerate(tasks))


class Jobs(list):
    """Stands for the jobs of a ClusterDef."""

    def add(self, name):
        """Add a job."""
        self.append(Job(name))
        return self[-1]


class ServerDef:
    """Stands for TensorFlow's message."""

    def __init__(self, jobs=(), job_name="", task_index=0):
        self.cluster, self.job_name, self.task_index = SimpleNamespace(job=Jobs(jobs)), job_name, task_index

    def CopyFrom(self, other):  # noqa: N802
        """Become as the other."""
        self.__init__(other.cluster.job, other.job_name, other.task_index)

    def ClearField(self, _name):  # noqa: N802
        """Forget the cluster."""
        self.cluster = SimpleNamespace(job=Jobs())


@pytest.fixture
def given():
    """Return what a program asks its server to be."""
    return ServerDef([Job("worker", ["a:1", "b:1"]), Job("host", ["c:1", "d:1"])], "host", 1)


def test_the_address_is_that_of_the_programs_task(given):
    assert tf_partial.address_of(given) == "d:1"


def test_the_changed_server_has_only_its_own_task(given):
    changed = tf_partial.alone(given, "d:1")
    [job] = changed.cluster.job
    assert (job.name, job.tasks) == ("alone", {0: "d:1"})
    assert (changed.job_name, changed.task_index) == ("alone", 0)
    assert len(given.cluster.job) == 2
