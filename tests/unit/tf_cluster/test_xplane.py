"""xplane.py over profiles of real programs: two workers that share a GPU (Keras fit), and an eager program with two servers."""

import pytest
from project import ROOT, load

xplane = load("tf_cluster.xplane")
RECORDED = ROOT / "tests/unit/recorded"
FIT = RECORDED / "profile_fit/worker-0.xplane.pb"


def test_a_profile_has_a_start_time_planes_and_events():
    began, planes = xplane.read(FIT)
    assert began == 1795731443828131648  # nanoseconds, exactly
    assert [plane.name for plane in planes] == ["/device:GPU:0", "/host:CPU", "Task Environment"]
    events = list(planes[0].events())
    assert len(events) == 386
    assert all(0 < event.begun < 10**9 and event.took > 0 for event in events)
    assert {event.line.split("(")[0] for event in events} == {f"Stream #{number}" for number in (13, 14, 15, 16)}


def test_statistics_have_their_types():
    _began, planes = xplane.read(FIT)
    steps = [event.stats() for event in planes[1].events() if event.name == "train"]
    assert [stats["step_num"] for stats in steps] == [3, 4, 5]
    kernel = next(event for event in planes[0].events() if event.name.startswith("sm80_xmma_fprop"))
    assert kernel.stats()["tf_op"].endswith(":_FusedConv2D")  # a reference to another name
    starts = [event.stats() for event in planes[1].events() if event.name == "ExecutorState::ProcessAsync::Start"]
    assert min(stats["step_id"] for stats in starts) < 0


@pytest.mark.parametrize("size", [1, 100, 63_000])
def test_an_incomplete_profile_is_an_error(tmp_path, size):
    path = tmp_path / "worker-0.xplane.pb"
    path.write_bytes(FIT.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"incomplete or damaged|has no profile_start_time"):
        xplane.read(path)


@pytest.mark.parametrize("data", [b"", b"\x0a\x02\x12\x00", b"\x08\x01", b"\x0a\x02\x10\x01", b"\xff" * 20, b"\x0b"])
def test_data_that_is_not_a_profile_is_an_error(tmp_path, data):
    path = tmp_path / "worker-0.xplane.pb"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"damaged|has no profile_start_time"):
        xplane.read(path)
