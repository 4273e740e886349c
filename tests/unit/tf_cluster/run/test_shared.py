"""run/shared.py: the folders of a run in the shared folder."""

from project import load

shared = load("tf_cluster.run.shared")


def test_the_folders_of_a_run_are_created_only_if_the_file_system_is_mounted(tmp_path):
    noted = {"run_id": "r2", "shared": str(tmp_path), "training": {}}
    assert f"{tmp_path}/tf-cluster is missing on " in shared.create(noted)
    (tmp_path / "tf-cluster").mkdir()
    for _each in range(2):  # the tasks of a training create the same folders
        assert shared.create(noted) == ""
    assert sorted(path.name for path in (tmp_path / "tf-cluster/r2").iterdir()) == ["checkpoints", "coordinators"]
    assert shared.checkpoints(noted) == tmp_path / "tf-cluster/r2/checkpoints"
    assert shared.create({"run_id": "r2"}) == ""
    (tmp_path / "tf-cluster/r3").touch()
    assert "could not be created: Not a directory" in shared.create({**noted, "run_id": "r3"})
