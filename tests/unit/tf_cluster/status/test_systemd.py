"""systemd.py: what systemctl show prints of several units."""

from project import load

parse_show = load("tf_cluster.status.systemd").parse_show


def test_units_are_separated_by_their_id():
    text = "Id=a.service\nActiveState=active\nStatusText=x=1\n\nId=b.service\nActiveState=failed\n"
    assert parse_show(text) == {
        "a.service": {"Id": "a.service", "ActiveState": "active", "StatusText": "x=1"},
        "b.service": {"Id": "b.service", "ActiveState": "failed"},
    }


def test_output_without_an_id_is_not_a_unit():
    assert parse_show("\n\nActiveState=active\nno property\n") == {}
