"""The programs in examples/, started by the commands in their own heads."""

import base64
import json
import re
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT, folder_of, said, verdict

EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(EXAMPLES))
import digits  # noqa: E402

# Single precision, and the parts of a batch are added in another order: after 110 steps of fit, weights up to 1 differed by 4e-7.
TOLERANCE = 1e-5
FIT = """
import sys
import numpy as np
import tensorflow as tf
if "workers" in sys.argv:
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
else:
    strategy = tf.distribute.ParameterServerStrategy(tf.distribute.cluster_resolver.TFConfigClusterResolver())
with strategy.scope():
    model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.Dense(1)])
    model.compile("sgd", "mse")
model.fit(tf.data.Dataset.from_tensor_slices((np.ones([8, 4]), np.ones([8, 1]))).batch(4), epochs=1)
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Return the path of the digits."""
    return digits.write(tmp_path_factory.mktemp("data") / "digits.npz")


@pytest.fixture(scope="session")
def start(cluster, data):
    """Return a function that starts an example and returns the command and the run's folder."""

    def start(name, **variables):
        head = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").split('"""')[1].replace("\\\n", "")
        _ansible, playbook, *words = shlex.split(
            re.search(r"(?m)^ +(ansible-playbook .*)$", head)[1].replace("output/digits.npz", str(data))
        )
        done = cluster.playbook(playbook, *words, f"--extra-vars={json.dumps({'run_timeout': 120, **variables})}")
        return done, folder_of(done)

    return start


@pytest.fixture(scope="session")
def result(start):
    """Return a function that runs an example to its end and returns its result and the run's folder."""

    def result(name, **variables):
        done, folder = start(name, **variables)
        assert done.returncode == 0, said(done)
        return verdict(folder)["result"], folder

    return result


@pytest.fixture(scope="session")
def alone(cluster, data, tmp_path_factory):
    """Return a function that runs an example with --alone in one process on the host machine and returns its weights."""

    def alone(name, words, weights):
        folder, host = f"/tmp/alone-{name}", cluster.host
        cluster.shell(host, f"mkdir -p {folder}; echo done")
        cluster.write(host, f"{folder}/program.py", (EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
        with open(data, "rb") as file:
            done = cluster.ssh(host, f"cat > {folder}/digits.npz", stdin=file)
        assert done.returncode == 0, done.stderr
        setting = f"TF_RUN_DIR={folder} TF_CHECKPOINT_DIR={folder} TF_USE_LEGACY_KERAS=1"
        task = json.dumps({"task": {"type": "host", "index": 0}})
        line = f"cd {folder} && {setting} TF_CONFIG='{task}' /opt/tf-cluster/venv/bin/python program.py --alone {words} >log 2>&1"
        done = cluster.ssh(host, f"{line} || {{ tail -5 log; exit 1; }}")
        assert done.returncode == 0, done.stdout
        path = tmp_path_factory.mktemp(name) / weights
        path.write_bytes(base64.b64decode(cluster.ssh(host, f"base64 {folder}/{weights}").stdout))
        return path

    return alone


def assert_same_weights(path, other, tolerance=TOLERANCE):
    """Compare the arrays in two files."""
    with np.load(path) as one, np.load(other) as two:
        assert one.files == two.files
        for name in one.files:
            np.testing.assert_allclose(one[name], two[name], rtol=0, atol=tolerance)


def test_the_placement_example_computes_on_both_workers(result):
    found, folder = result("placement")
    np.testing.assert_allclose(found["matrix"], [[26.80402, 32.85203], [54.003944, 69.09987]], rtol=1e-6)
    assert found["devices"] == [f"/job:worker/replica:0/task:{index}/device:CPU:0" for index in range(2)]
    assert "c was computed on /job:worker/replica:0/task:0" in (folder / "stdout.log").read_text(encoding="utf-8")


def test_the_replication_example_trains_with_both_workers(result):
    found, _folder = result("replication")
    assert found["accuracy"] > 0.9
    assert found["steps"] == [300.0, 300.0]


@pytest.fixture(scope="session")
def looped(result):
    """Return the result of the custom loop and the run's folder."""
    return result("custom_loop")


def test_the_custom_loop_example_trains_with_both_workers(cluster, looped):
    found, folder = looped
    assert found["replicas"] == 2
    assert found["accuracy"] > 0.9
    tasks = verdict(folder)["training"]["tasks"]
    assert {task: (each["machine"], each["outcome"]) for task, each in tasks.items()} == {
        f"worker:{index}": (machine, "done") for index, machine in enumerate(cluster.machines("worker"))
    }
    for log in ("stdout.log", "tasks/worker-1/stdout.log"):
        assert "step 300 of 300" in (folder / log).read_text(encoding="utf-8")


def test_a_custom_loop_computes_the_same_weights_as_one_process(looped, alone):
    _found, folder = looped
    assert_same_weights(folder / "early.npz", alone("custom_loop", "--steps 5", "early.npz"))
    assert_same_weights(folder / "weights.npz", folder / "tasks/worker-1/weights.npz", 0)


def test_a_custom_loop_continues_from_the_last_checkpoint(start):
    done, folder = start("custom_loop", program_args="--fail-at 50 --steps 100", train_restarts=1)
    assert done.returncode == 0, said(done)
    assert "was killed by SIGKILL; all tasks restart (attempt 2 of 2)" in said(done)
    assert "worker:0 continues from step 40" in said(done)
    found = verdict(folder)
    assert found["result"]["began_at"] == 40
    assert found["training"]["attempts"] == 2


@pytest.fixture(scope="session")
def fitted(result):
    """Return the result of fit with workers and the run's folder."""
    return result("fit_workers")


def test_the_fit_workers_example_stops_early_and_saves_the_best_model_and_tensorboard_events(fitted):
    found, folder = fitted
    assert found["replicas"] == 2
    assert found["accuracy"] > 0.9
    assert found["epochs"] < 20  # EarlyStopping
    assert (folder / "best.keras").stat().st_size > 10_000  # ModelCheckpoint
    for kind in ("train", "validation"):
        [events] = (folder / "tensorboard" / kind).iterdir()
        assert b"epoch_accuracy" in events.read_bytes()


def test_fit_with_workers_computes_the_same_weights_as_one_process(fitted, alone):
    _found, folder = fitted
    assert_same_weights(folder / "weights.npz", alone("fit_workers", "", "weights.npz"))
    assert_same_weights(folder / "weights.npz", folder / "tasks/worker-1/weights.npz", 0)


def test_fit_with_workers_restarts_from_the_first_epoch_without_a_shared_folder(result):
    """Only the first worker could read the backup."""
    found, folder = result("fit_workers", program_args="--fail-after 1 --epochs 2", train_restarts=1)
    assert verdict(folder)["training"]["attempts"] == 2
    assert (found["first_epoch"], found["epochs"]) == (1, 2)


def test_the_coordinator_example_places_variables_on_the_parameter_server(result):
    found, _folder = result("coordinator")
    assert found["accuracy"] > 0.9
    assert found["devices"] == ["/job:ps/replica:0/task:0/device:CPU:0"]


def test_the_fit_parameter_servers_example_saves_the_best_model_and_tensorboard_events(result):
    found, folder = result("fit_parameter_servers")
    assert found["accuracy"] > 0.9
    assert found["devices"] == ["/job:ps/replica:0/task:0/device:CPU:0"]
    assert sum(path.stat().st_size for path in folder.glob("best.data-*")) > 10_000
    [events] = (folder / "tensorboard/train").iterdir()
    assert b"epoch_accuracy" in events.read_bytes()


def test_fit_with_parameter_servers_computes_the_same_weights_as_one_process(result, alone):
    """Each step uses all digits and each epoch has one step, so the result does not depend on which worker computes it."""
    words = "--epochs 5 --steps 1 --batch 1400"
    _found, folder = result("fit_parameter_servers", program_args=words)
    assert_same_weights(folder / "weights.npz", alone("fit_parameter_servers", words, "weights.npz"))


def test_the_evaluator_example_evaluates_while_the_workers_train(result):
    found, _folder = result("evaluator")
    assert found["accuracy"] > 0.9
    assert found["device"] == "/job:evaluator/replica:0/task:0/device:CPU:0"
    assert len(found["so_far"]) > 1  # while the workers train


def test_the_data_service_example_gives_each_digit_to_exactly_one_worker(result):
    found, folder = result("data_service")
    assert sum(found["counts"]) == found["different"] == 1400
    assert min(found["counts"]) > 0
    assert "worker:1 got" in (folder / "tasks/worker-1/stdout.log").read_text(encoding="utf-8")


def test_the_dtensor_example_multiplies_matrices_that_are_split_over_the_workers(result):
    found, _folder = result("dtensor")
    assert found["part"] == [8, 8]
    assert found["error"] < 1e-5


def test_the_sweep_example_tries_two_rates_on_different_tasks(cluster, start):
    def run(rate):
        """Start a run, wait for it, and return its verdict."""
        started, _folder = start("sweep", program_args=[rate], run_name=f"rate-{rate}")
        assert started.returncode == 0, said(started)
        name = re.search(r"The run (\S+) continues", said(started))[1]
        done = cluster.playbook("playbooks/attach.yml", f"--extra-vars=run={name}")
        assert done.returncode == 0, said(done)
        return verdict(folder_of(done))

    rates = [0.001, 1.0]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(run, rates))
    assert [each["result"]["rate"] for each in found] == rates
    assert found[0]["result"]["accuracy"] < 0.9 < found[1]["result"]["accuracy"]
    assert sorted(task for each in found for task in each["tasks"]) == ["worker:0", "worker:1"]


def test_fit_with_keras_3_fails_and_reports_the_fix(cluster, tmp_path):
    (tmp_path / "fit.py").write_text(FIT, encoding="utf-8")
    commands = {"train": {"program_args": "workers"}, "run": {"run_task": "chief:0", "program_keras": 3}}

    def run(playbook):
        """Run the program and return all failures."""
        variables = {"program": str(tmp_path / "fit.py"), "run_timeout": 120, **commands[playbook]}
        done = cluster.playbook(f"playbooks/{playbook}.yml", f"--extra-vars={json.dumps(variables)}")
        assert done.returncode != 0
        return " ".join(verdict(folder_of(done))["failures"])

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(run, commands))
    assert ["set program_keras=2" in failures for failures in found] == [True, True], found


def profiled(folder):
    """Return the tasks of each window whose profiles were collected."""
    windows = sorted((folder / "profile/plugins/profile").iterdir())
    return [sorted(path.name.removesuffix(".xplane.pb") for path in window.iterdir()) for window in windows]


def test_a_training_is_traced_on_all_tasks(start):
    for _try in range(4):  # TensorFlow's profiler may crash when it collects collective operations; the training does not notice
        done, folder = start("custom_loop", program_args="--steps 100", trace=True)
        assert done.returncode == 0, said(done)
        if ["worker-0", "worker-1"] in profiled(folder):
            break
        output = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("stdout.log"))
        assert "TensorFlow's profiler crashed" in output
    assert ["worker-0", "worker-1"] in profiled(folder)
    trace = verdict(folder)["trace"]
    assert trace["steps"] >= 50
    assert trace["operations"] > 100
    assert trace["transfers"] >= 100  # collective operations
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in ("What took longest", "worker:0</td>", "worker:1</td>", "all tasks"):
        assert text in page


def test_an_eager_program_is_traced_on_all_tasks(cluster):
    done, folder = cluster.run(ROOT / "tests/lab/programs/two_workers_eagerly.py", "--extra-vars=trace=true")
    assert done.returncode == 0, said(done)
    assert profiled(folder) == [["evaluator-0", "host-0", "ps-0", "worker-0", "worker-1"]]
    trace = verdict(folder)["trace"]
    assert trace["steps"] > 10
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<tr><td>worker:0</td><td>worker:1</td>" in page  # the product
    assert "<tr><td>worker:1</td><td>host:0</td>" in page  # the sum
    assert "MatMul" in page
    assert "Log" in page
