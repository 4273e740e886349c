"""The filter lab_addresses: podman is given addresses, whatever the inventory has."""

import pytest
from project import load

filters = load("plugins/filter/lab_addresses.py")


@pytest.fixture
def names(monkeypatch):
    """Return the names that the controller resolves: name -> addresses."""
    known = {}

    def getaddrinfo(name, *_words, **_more):
        if name not in known:
            raise OSError("Name or service not known")
        return [(None, None, None, "", (address, 0)) for address in known[name]]

    monkeypatch.setattr(filters.socket, "getaddrinfo", getaddrinfo)
    return known


def test_addresses_are_not_changed(names):
    assert filters.lab_addresses({"a": "10.89.77.10", "b": "192.0.2.1"}, "10.89.77.0/24") == {
        "a": "10.89.77.10",
        "b": "192.0.2.1",
    }


def test_a_name_is_resolved_to_its_address_in_the_lab_network(names):
    names["a.lab"] = ["192.0.2.1", "10.89.77.10"]
    assert filters.lab_addresses({"a": "a.lab"}, "10.89.77.0/24") == {"a": "10.89.77.10"}


@pytest.mark.parametrize(("addresses", "meant"), [(None, "no address"), (["192.0.2.1"], "192.0.2.1")])
def test_a_name_without_an_address_in_the_lab_network_is_an_error(names, addresses, meant):
    if addresses:
        names["a.lab"] = addresses
    with pytest.raises(ValueError, match=rf"^a: ansible_host is 'a.lab', which the controller resolves to {meant}\. "):
        filters.lab_addresses({"a": "a.lab"}, "10.89.77.0/24")
