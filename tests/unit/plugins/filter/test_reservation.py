"""Reservations: what a run of some tasks reserves, and what it says of tasks that it cannot have."""

import pytest
from project import load

cluster_spec = load("plugins/filter/cluster_spec.py").cluster_spec
filters = load("plugins/filter/reservation.py")
training = load("plugins/filter/training.py")


def cluster(**variables):
    """Return a cluster of the machines a and b (worker) and c (ps, chief, host)."""
    groups = {"all": ["a", "b", "c"], "worker": ["a", "b"], "ps": ["c"], "chief": ["c"], "host": ["c"]}
    found = cluster_spec(groups, {name: {"ansible_host": f"10.0.0.{place}", **variables} for place, name in enumerate("abc", 1)})
    assert found["problems"] == []
    return found


@pytest.mark.parametrize("wanted", ["", None])
def test_a_run_reserves_all_tasks_by_default(wanted):
    found = filters.reservation(cluster(), wanted)
    assert (found["problems"], found["count"], found["names"], found["tasks"]) == ([], 0, [], [])


@pytest.mark.parametrize("wanted", [2, "2", " 2 "])
def test_a_number_reserves_that_many_workers(wanted):
    assert filters.reservation(cluster(), wanted)["count"] == 2


@pytest.mark.parametrize("wanted", [0, "0"])
def test_zero_reserves_no_task(wanted):
    found = filters.reservation(cluster(), wanted)
    assert (found["problems"], found["count"], found["names"], found["none"], len(found["own"])) == ([], 0, [], True, 4)
    assert filters.reservation(cluster())["none"] is False


def test_a_training_with_zero_tasks_is_reported():
    plan = training.training(cluster(), reserved=filters.reservation(cluster(), 0))
    assert plan["problems"] == ["run_tasks is 0. A training needs at least one task."]


@pytest.mark.parametrize("wanted", [["worker:1", "ps:0", "worker:1"], "worker:1, ps:0"])
def test_a_list_reserves_the_named_tasks(wanted):
    found = filters.reservation(cluster(), wanted)
    assert (found["names"], found["tasks"]) == (["worker:1", "ps:0"], ["10.0.0.2:2222", cluster()["spec"]["ps"][0]])


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (3, "run_tasks is 3. Set a number up to 2"),
        (True, "run_tasks is True. Set a number of worker tasks"),
        (-1, "run_tasks is -1. Set a number of worker tasks"),
        ("two", "run_tasks is 'two'. Set a number of worker tasks"),
        ([], "run_tasks is []. Set a number of worker tasks"),
        ([1], "run_tasks is [1]. Set a number of worker tasks"),
        ({"worker": 2}, "run_tasks is {'worker': 2}. Set a number of worker tasks"),
        (["worker:9"], "run_tasks contains worker:9, which has no standing server. Set tasks such as ps:0, worker:0, worker:1."),
        (["host:0"], "run_tasks contains host:0, which has no standing server."),
    ],
)
def test_an_invalid_reservation_is_reported(wanted, words):
    [sentence] = filters.reservation(cluster(), wanted)["problems"]
    assert sentence.startswith(words)


def test_each_concurrent_program_of_a_machine_has_a_separate_server_address():
    found = filters.reservation(cluster())["own"]
    assert found[0] == "10.0.0.3:2223"
    assert len(set(found)) == 4
    ports = {int(entry.rpartition(":")[2]) for entry in found}
    assert ports <= set(training.cluster_ports(cluster(), "c"))
    assert not ports & {port for machine in "ab" for port in training.cluster_ports(cluster(), machine)}


@pytest.mark.parametrize("wanted", [0, 1, ["worker:0"]])
def test_a_run_of_a_part_of_the_tasks_takes_the_own_address_of_its_task_last(wanted):
    """With it, the sessions of a run of all tasks share variables."""
    whole = filters.reservation(cluster())["own"]
    assert filters.reservation(cluster(), wanted)["own"] == [*whole[1:], whole[0]]


def test_run_slots_sets_the_number_of_concurrent_programs():
    assert len(filters.reservation(cluster(run_slots=1))["own"]) == 1
    assert len(filters.reservation(cluster(run_slots="8"), "", "chief:0")["own"]) == 8


@pytest.mark.parametrize("slots", [0, 65, "many"])
def test_an_invalid_number_of_run_slots_is_reported(slots):
    groups = {"all": ["a"], "worker": ["a"], "host": ["a"]}
    [sentence] = cluster_spec(groups, {"a": {"run_slots": slots}})["problems"]
    assert sentence.startswith(f"run_slots is {slots!r}. Set a number from 1 to 64.")


def test_a_training_uses_named_tasks_and_prefers_free_workers():
    reserve = filters.reservation
    assert training.training(cluster(), reserved=reserve(cluster(), 1), busy=["worker:0"])["machines"] == {"worker:1": "b"}
    plan = training.training(cluster(), jobs=["chief", "worker"], reserved=reserve(cluster(), 1))
    assert list(plan["machines"]) == ["chief:0", "worker:0"]
    plan = training.training(cluster(), reserved=reserve(cluster(), ["worker:1"]))
    assert (plan["chief"], plan["cluster"]) == ("worker:1", {"worker": ["10.0.0.2:3222"]})
    assert plan["control"] == "10.0.0.2:4222"
    [sentence] = training.training(cluster(), reserved=reserve(cluster(), ["ps:0"]))["problems"]
    assert sentence == "run_tasks contains ps:0, which is not a task of train_jobs (worker)."


WORKERS = [{"job": "worker", "index": i, "address": "10.0.0.1", "port": 2222 + 2 * i, "standing": True} for i in range(2)]
OTHER = {"job": "worker", "index": 2, "address": "10.0.0.2", "port": 2222, "standing": False}
MACHINES = {"a": WORKERS, "b": [OTHER], "c": []}
TRAINING = {"id": "r1", "chief": "worker:2", "machines": {"worker:2": "b", "worker:3": "c"}}


def collection(outcome, **run):
    """Return what each machine has of a run whose program ran on b."""
    return filters.run_collection(MACHINES, {"id": "r1", "machine": "b", **run}, outcome)


def which(found, name):
    """Return the machines for which a switch is set."""
    return [machine for machine, its in found.items() if its[name]]


def test_run_collection_lists_the_tasks_and_parts_of_a_run_by_machine():
    def has(outcome):
        return {machine: {"tasks": its["tasks"], "parts": its["parts"]} for machine, its in collection(outcome).items()}

    whole = {"a": {"tasks": WORKERS, "parts": []}, "b": {"tasks": [OTHER], "parts": []}}
    assert has({}) == whole
    part = has({"names": {"worker:0": "worker:1"}, "reserved": ["10.0.0.1:2224"]})
    assert part == {"a": {"tasks": WORKERS[1:], "parts": []}, "b": {"tasks": [], "parts": []}}
    assert has({"names": {"worker:0": "worker:1"}}) == whole  # a run of version 0.9
    assert has({"names": {"a": "a"}, "reserved": [], "training": TRAINING}) == {
        "b": {"tasks": [OTHER], "parts": []},
        "c": {"tasks": [], "parts": [{"task": "worker:3", "name": "worker-3", "id": "r1.worker-3"}]},
    }
    assert which(collection({}), "results") == ["b"]


def calls(*runs, **more):
    """Return the result of a collection of these runs, of which the last one has ``more``."""
    return {"results": [{"item": {"id": run}, **(more if run == runs[-1] else {})} for run in runs]}


def test_a_run_is_noted_as_collected_once_it_is_over():
    assert which(collection({"ended": 5.0}), "note") == ["a", "b"]
    assert which(collection({}), "note") == []
    assert filters.machines_to_note(collection({"ended": 5.0}), {"a": calls("r1"), "b": calls("r1")}) == []


def test_a_training_is_noted_as_collected_only_if_all_parts_are():
    ended = collection({"ended": 5.0, "training": TRAINING})
    assert [its["runs"] for its in ended.values()] == [["r1"], ["r1.worker-3"]]
    assert which(ended, "note") == []
    assert filters.machines_to_note(ended, {"b": calls("r1"), "c": calls("r1.worker-3")}) == ["b", "c"]
    assert filters.machines_to_note(ended, {"b": calls("r1"), "c": calls("r1.worker-3", unreachable=True)}) == []
    assert filters.machines_to_note(ended, {"b": calls("r1"), "c": calls("r1.worker-3", failed=True)}) == []
    assert filters.machines_to_note(ended, {"b": calls("r1"), "c": {"unreachable": True}}) == []
    assert filters.machines_to_note(ended, {"b": calls("r1"), "c": calls("r0.worker-3")}) == []  # of an earlier playbook
    assert filters.machines_to_note(ended, {"b": calls("r1")}) == []
    # The journals of the run came from c, its results did not come from b.
    journals = {"c": calls("r1.worker-3", "r1")}
    assert filters.machines_to_note(ended, {"b": calls("r1"), **journals}) == ["b", "c"]
    assert filters.machines_to_note(ended, {"b": calls("r1", failed=True), **journals}) == []
    assert filters.machines_to_note(ended, journals) == []
    both = {"b": calls("r1"), "c": calls("r1.worker-3")}
    assert filters.machines_to_note(collection({"training": TRAINING}), both) == []
    assert filters.machines_to_note(collection({"ended": 5.0, "training": TRAINING}, over=False), both) == []
    # The last chief's part has another ID, and the first one's part is one of the others.
    moved = {**TRAINING, "chief": "worker:3", "first_chief": "worker:2"}
    found = filters.run_collection(
        MACHINES, {"id": "r1", "part": "r1.worker-3", "machine": "c"}, {"ended": 5.0, "training": moved}
    )
    assert {machine: its["runs"] for machine, its in found.items()} == {"b": ["r1"], "c": ["r1.worker-3"]}


def test_machines_may_be_unreachable_that_the_run_left_out_or_a_training_lost():
    assert which(collection({}), "optional") == []
    assert which(collection({"missing": ["10.0.0.1:2222"]}), "optional") == ["a"]
    lost = {"training": TRAINING, "part": {"history": [{"tasks": ["worker:2", "worker:3"]}, {"tasks": ["worker:2"]}]}}
    assert which(collection(lost), "optional") == ["c"]
    assert which(collection({**lost, "part": {"history": lost["part"]["history"][:1]}}), "optional") == []
    assert which(collection({**lost, "part": {}}), "optional") == []


def test_a_program_cannot_make_its_training_impossible_to_collect():
    """The program's user can write part.json, which names the tasks of each attempt."""
    history = {"history": [{"tasks": ["worker:9"]}]}
    assert which(collection({"training": TRAINING, "part": history}), "optional") == ["c"]
    assert which(collection({"part": history}), "optional") == ["a"]
