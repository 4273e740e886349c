"""The account tensorflow: only the one that the role created is removed."""

import jinja2
import pytest
import yaml
from project import ROOT

ROLE = ROOT / "roles/tensorflow"
VARIABLES = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
COMMENT = VARIABLES["__tensorflow_account_comment"]


def tasks(name, module):
    """Return the calls of a module in one of the role's files, each with its condition."""
    found = yaml.safe_load((ROLE / f"tasks/{name}.yml").read_text(encoding="utf-8"))
    return [(task[module], task.get("when")) for task in found if module in task]


@pytest.mark.parametrize(
    ("account", "called"),
    [
        ([], True),
        (["tensorflow", "x", 998, 998, COMMENT, "/var/lib/tf-cluster", "/usr/sbin/nologin"], False),
        (["tensorflow", "x", 998, 998, COMMENT, "/var/lib/tf-cluster", "/bin/bash"], True),
        (["tensorflow", "x", 998, 998, "", "/var/lib/tf-cluster", "/bin/bash"], False),
        (["tensorflow", "x", 1001, 1001, "Jo", "/home/tensorflow", "/bin/bash"], False),
    ],
)
def test_only_a_new_account_or_the_account_of_the_role_is_changed(account, called):
    [(created, _always)] = tasks("account", "ansible.builtin.user")
    [(_file, when)] = tasks("prepare", "ansible.builtin.include_tasks")
    assert created["comment"] == "{{ __tensorflow_account_comment }}"
    expression = VARIABLES[when].strip("{} ")
    given = {"ansible_facts": {"tf_machine": {"account": account}}, "__tensorflow_account_comment": COMMENT}
    assert jinja2.Environment(autoescape=True).compile_expression(expression)(**given) is called


def test_the_comment_of_the_account_is_valid_in_passwd():
    assert not set(":,\n") & set(COMMENT)


@pytest.mark.parametrize(
    ("account", "own"),
    [
        (None, False),
        (["x", "998", "998", COMMENT, "/var/lib/tf-cluster", "/usr/sbin/nologin"], True),
        (["x", "998", "998", "", "/var/lib/tf-cluster", "/usr/sbin/nologin"], False),
        (["x", "1001", "1001", "Jo", "/home/tensorflow", "/bin/bash"], False),
    ],
)
def test_only_an_account_with_the_comment_is_removed(account, own):
    [(removed, when)] = tasks("remove", "ansible.builtin.user")
    assert removed["state"] == "absent"
    expression = VARIABLES[when].strip("{} ")
    compiled = jinja2.Environment(autoescape=True).compile_expression(expression)
    assert compiled(__tensorflow_account=account, __tensorflow_account_comment=COMMENT) is own
