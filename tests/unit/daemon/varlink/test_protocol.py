"""Calls of every kind, and callers that don't wait for the end."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from tests.unit.daemon.varlink.conftest import message

if TYPE_CHECKING:
    from tests.unit.daemon.varlink.conftest import Served


def test_a_method_knows_its_caller(served: Served) -> None:
    with served.connect() as client:
        assert client.call("Pid") == {"parameters": {"n": os.getpid()}}


def test_a_stream_sends_all_with_more(served: Served) -> None:
    with served.connect() as client:
        client.socket.sendall(message("Count", more=True, to=2))
        assert [client.reply() for _ in range(3)] == [
            {"continues": True, "parameters": {"n": 0}},
            {"continues": True, "parameters": {"n": 1}},
            {"parameters": {"n": 2}},
        ]
        served.wait_for("sent")


def test_a_stream_sends_its_last_reply_without_more(served: Served) -> None:
    with served.connect() as client:
        assert client.call("Count", to=2) == {"parameters": {"n": 2}}


def test_what_means_nothing_without_more_says_so(served: Served) -> None:
    with served.connect() as client:
        assert client.call("Watch")["error"] == "org.varlink.service.ExpectedMore"
        assert client.call("Watch", more=True) == {"parameters": {"n": 1}}


def test_wrong_parameters_are_named(served: Served) -> None:
    with served.connect() as client:
        told = client.call("Count", to="x")
    assert told["error"] == "org.varlink.service.InvalidParameter"
    assert told["parameters"] == {"parameter": "to"}


@pytest.mark.parametrize("method", ["Fail", "Cancelled", "Unended"])
def test_a_method_that_fails_leaves_the_connection_in_use(served: Served, method: str) -> None:
    with served.connect() as client:
        assert "InternalServerError" in client.call(method)["error"]
        assert client.call("Pid")


def test_a_stream_ends_when_its_caller_hangs_up(served: Served) -> None:
    with served.connect() as client:
        client.socket.sendall(message("Endless", more=True))
        client.reply()
    served.wait_for("endless")


def test_a_stream_without_replies_ends_when_its_caller_hangs_up(served: Served) -> None:
    with served.connect() as client:
        client.socket.sendall(message("Endless"))
        with served.connect() as other:
            assert other.call("Pid")
    served.wait_for("endless")


def test_a_stream_goes_on_for_a_caller_who_only_has_no_more_to_say(served: Served) -> None:
    with served.connect() as client:
        client.socket.sendall(message("Endless", more=True))
        client.socket.shutdown(socket.SHUT_WR)
        client.reply()
        with served.connect() as other:
            assert other.call("Pid")
        assert served.trial.ended == []
    served.wait_for("endless")


def test_a_stream_ends_when_its_replies_find_nobody(served: Served) -> None:
    with served.connect() as client:
        client.socket.sendall(message("Flood", more=True))
        client.reply()
    served.wait_for("flood")


def test_a_stream_waits_for_who_reads_slowly(served: Served) -> None:
    with served.connect() as slow, served.connect() as other:
        slow.socket.sendall(message("Flood", more=True))
        slow.reply()
        assert other.call("Pid")
        assert served.trial.ended == []


def test_the_end_of_the_server_ends_streams(served: Served) -> None:
    with served.connect() as client:
        client.socket.sendall(message("Endless", more=True))
        client.reply()
        served.loop.call_soon_threadsafe(served.server.abort_clients)
        assert client.is_closed()
        served.wait_for("endless")


def test_calls_after_a_stream_are_answered(served: Served) -> None:
    with served.connect() as client:
        client.socket.sendall(message("Count", more=True, to=1) + message("Pid"))
        assert [client.reply()["parameters"]["n"] for _ in range(3)] == [0, 1, os.getpid()]


def test_a_reply_that_cant_be_sent_ends_the_connection(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with served.connect() as client:
        client.socket.sendall(message("OpenMany"))
        assert client.is_closed()
        assert client.socket.recv(1) == b""
    assert "could not be sent" in caplog.text
    with served.connect() as other:
        assert other.call("Pid")
