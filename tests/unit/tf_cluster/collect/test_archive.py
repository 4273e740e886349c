"""collect/archive.py: files that change while they are packed."""

import io
import tarfile

import pytest
from project import load

archive = load("tf_cluster.collect.archive")


class Reading:
    """A file that changes while it is read."""

    def __init__(self, path, change):
        self.file, self.change = path.open("rb"), change
        self.fileno = self.file.fileno

    def read(self, count):
        """Return what is there by now."""
        self.change()
        return self.file.read(count)


@pytest.mark.parametrize(("after", "packed"), [(b"x" * 3, b"xxx\0\0"), (b"x" * 9, b"xxxxx")])
def test_a_file_that_changes_during_packing_keeps_the_size_that_was_found(tmp_path, after, packed):
    path, other, buffer = tmp_path / "a", tmp_path / "b", io.BytesIO()
    path.write_bytes(b"x" * 5)
    other.write_bytes(b"next")
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        packer = archive.Packer(tar, 10**6, [])
        packer.add_open("a", Reading(path, lambda: path.write_bytes(after)))
        packer.add_open("b", other.open("rb"))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        assert tar.extractfile("a").read() == packed
        assert tar.extractfile("b").read() == b"next"
