"""Locks between processes."""

import time

import pytest
from tf_cluster import lock


def test_a_lock_has_one_holder_at_a_time(tmp_path):
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        assert lock.acquire(first, 0)
        started = time.monotonic()
        assert not lock.acquire(second, 0.2)
        assert time.monotonic() - started >= 0.2
        first.close()
        assert lock.acquire(second, 0)


def test_a_caller_can_stop_the_wait_for_a_lock(tmp_path):
    path = tmp_path / "lock"
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("stop")

    with path.open("w") as first, path.open("w") as second:
        assert lock.acquire(first, 0)
        with pytest.raises(RuntimeError, match="stop"):
            lock.acquire(second, 10, stop)
    assert len(calls) == 3
