"""What is decided about a hand-over; whole ones are in tests/flows/test_handover.py."""

from dataclasses import replace

import pytest

from rolemesh.errors import ConfigError, Problem, StartError, Unavailable
from rolemesh.runtime.handover import (
    MAX_PROBLEMS,
    MAX_TEXT,
    VARIABLE,
    FileIdentity,
    is_replaced,
    obstacle,
    refusal_error,
    refusal_fields,
    successor_command,
    successor_environment,
    why_it_ended,
)

LOADED = FileIdentity(device=1, inode=2, size=3, mtime=4, ctime=5)

BROKEN = """\
Traceback (most recent call last):
  File "/usr/bin/rolemesh-gateway", line 5, in <module>
    from rolemesh.gateway.main import main
  File "/usr/lib/python3/dist-packages/rolemesh/gateway/main.py", line 1
    def main(:
             ^
SyntaxError: invalid syntax

"""


@pytest.mark.parametrize("field", ["device", "inode", "size", "mtime", "ctime"])
def test_a_program_is_another_one_when_anything_of_its_file_is(field: str) -> None:
    """A reproducible build may have the same time and size, and get the same inode."""
    assert is_replaced(LOADED, replace(LOADED, **{field: 9}))
    assert not is_replaced(LOADED, LOADED)


def test_a_program_that_is_gone_is_no_other_one() -> None:
    assert not is_replaced(LOADED, None)
    assert not is_replaced(None, LOADED)


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"SYSTEMD_EXEC_PID": "7", "NOTIFY_SOCKET": "/run/systemd/notify"}, ""),
        ({"SYSTEMD_EXEC_PID": "7"}, "Type=notify"),
        ({"SYSTEMD_EXEC_PID": "8", "NOTIFY_SOCKET": "/run/systemd/notify"}, "not started by"),
        ({"NOTIFY_SOCKET": "/run/notify"}, "not started by systemd"),
        ({}, "not started by systemd"),
    ],
)
def test_only_systemd_follows_a_daemon_to_another_process(
    environment: dict[str, str], why: str
) -> None:
    found = obstacle(environment, 7)
    assert why in found
    assert bool(why) == bool(found)


def test_a_program_is_started_as_its_service_manager_does_it() -> None:
    argv, original = ["/usr/bin/x", "--port=1"], ["/usr/bin/python3.11", "/usr/bin/x", "--port=1"]
    assert successor_command(argv, original, "/usr/bin/python3", is_program=True) == argv


def test_a_module_is_started_by_the_interpreter_that_runs() -> None:
    argv = ["/lib/x/main.py", "--port=1"]
    original = ["python3", "-m", "x.main", "--port=1"]
    command = successor_command(argv, original, "/usr/bin/python3", is_program=False)
    assert command == ["/usr/bin/python3", "-m", "x.main", "--port=1"]


def test_the_new_process_has_the_environment_of_the_old_one_at_its_start() -> None:
    at_start = {
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "STATE_DIRECTORY": "/var/lib/x",
        "LISTEN_PID": "1",
        "LISTEN_FDS": "2",
        "LISTEN_FDNAMES": "a:b",
        VARIABLE: "3",
    }
    assert successor_environment(at_start, 9) == {
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "STATE_DIRECTORY": "/var/lib/x",
        VARIABLE: "9",
    }


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            BROKEN,
            "SyntaxError: invalid syntax (/usr/lib/python3/dist-packages/rolemesh/gateway/main.py:1)",
        ),
        (
            "usage: x\nx: error: unrecognized arguments: --y\n",
            "x: error: unrecognized arguments: --y",
        ),
        (" \n", "it ended without a word"),
    ],
)
def test_the_reason_is_in_the_last_words(output: str, reason: str) -> None:
    assert why_it_ended(output) == reason


def test_a_refused_configuration_arrives_as_one() -> None:
    refused = ConfigError((Problem(where="a.yaml:1", key="listen", message="no"),))
    arrived = refusal_error(refusal_fields(refused))
    assert isinstance(arrived, ConfigError)
    assert arrived.problems == refused.problems


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (StartError("the port is taken"), "this one serves on: the port is taken"),
        (Unavailable("no", reason="x", retry_after_s=1), "this one serves on: no"),
        (ZeroDivisionError("a mistake"), "ZeroDivisionError: a mistake"),
        (ExceptionGroup("", [ExceptionGroup("", [KeyError("a")])]), "KeyError: 'a'"),
    ],
)
def test_any_other_error_arrives_as_a_start_that_failed(error: Exception, says: str) -> None:
    arrived = refusal_error(refusal_fields(error))
    assert isinstance(arrived, StartError)
    assert says in str(arrived)


def test_what_a_later_version_says_is_understood_as_far_as_it_goes() -> None:
    arrived = refusal_error({"problems": [{"message": "no", "severity": 3}]})
    assert str(arrived) == "no"
    assert "no reason given" in str(refusal_error({}))


def test_a_refusal_fits_into_a_message() -> None:
    problem = Problem(where="a.yaml:1", key="listen", message="x" * MAX_TEXT * 2)
    fields = refusal_fields(ConfigError((problem,) * MAX_PROBLEMS * 2))
    assert len(fields["problems"]) == MAX_PROBLEMS
    assert {len(each["message"]) for each in fields["problems"]} == {MAX_TEXT}
