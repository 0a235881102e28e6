"""What calls to the daemon raise: an exception for each error of io.gmemd, with its fields."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gmemd.errors import Exit, GmemdError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gmemd.client.types import Candidate, Problem, Refusal

_FOR_OWNERS = frozenset({"Acquire", "Audit", "Describe", "Register", "Watch"})


_FOR_HOLDERS = frozenset({"Handover", "Release"})


class NoDaemonError(GmemdError):
    """Nobody answers on the socket."""

    exit_code = Exit.NO_DAEMON


class FdsLostError(GmemdError):
    """The reply's file descriptors didn't fit into this process."""

    exit_code = Exit.HOST


class CallError(GmemdError):
    """The daemon answered with an error.

    ``error`` is its varlink name, unqualified; the fields that a subclass declares are those of
    the error's parameters, None where the daemon left one out.
    """

    def __init__(
        self, error: str, parameters: dict[str, Any], message: str, *, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.error = error
        self.parameters = parameters
        for name in inspect.get_annotations(type(self)):
            setattr(self, name, parameters.get(name))

    @classmethod
    def words(cls, method: str, told: Mapping[str, Any]) -> tuple[str, str | None]:
        """Message and hint, from the error's parameters."""
        return f"{method}: {told.get('message') or 'it failed'}", told.get("hint")


class RefusedError(CallError):
    """The caller may not do this."""

    exit_code = Exit.NOT_PERMITTED

    @classmethod
    def words(cls, method: str, told: Mapping[str, Any]) -> tuple[str, str | None]:
        """As CallError."""
        del told
        who = "root and the daemon's own user"
        if method in _FOR_HOLDERS:
            who = "the process that holds the VM's memory, root and the daemon's own user"
        if method in _FOR_OWNERS:
            who = "root, the daemon's own user and the owner that the VM's spec names"
        return f"{method}: not permitted", f"only {who} may; run it with sudo"


class BadCallError(CallError):
    """The call names something that isn't there, or isn't understood."""

    exit_code = Exit.USAGE


class NoSuchVMError(BadCallError):
    """No VM of that name is known."""

    vm: str

    @classmethod
    def words(cls, method: str, told: Mapping[str, Any]) -> tuple[str, str | None]:
        """As CallError."""
        del method
        return (
            f"the daemon knows no VM named {told.get('vm')!r}",
            "`gmemd status` lists them; a new file in vms.d needs `gmemd reload`",
        )


class NoSuchMethodError(BadCallError):
    """The daemon is another version than this client."""

    @classmethod
    def words(cls, method: str, told: Mapping[str, Any]) -> tuple[str, str | None]:
        """As CallError."""
        del told
        return (
            f"the daemon knows no method {method}",
            "it is another version than this command; restart it after an upgrade",
        )


class InvalidParameterError(BadCallError):
    """The daemon doesn't accept a parameter."""

    parameter: str

    @classmethod
    def words(cls, method: str, told: Mapping[str, Any]) -> tuple[str, str | None]:
        """As CallError."""
        return f"{method}: the daemon doesn't accept {told.get('parameter')!r}", None


class BadSpecError(BadCallError):
    """The inline spec is wrong: everything that is."""

    problems: list[Problem]

    @classmethod
    def words(cls, method: str, told: Mapping[str, Any]) -> tuple[str, str | None]:
        """As CallError."""
        lines = [f"{method}: the spec isn't accepted"]
        lines += [f"  {line}" for problem in told.get("problems") or () for line in _lines(problem)]
        return "\n".join(lines), None


def _lines(problem: Mapping[str, Any]) -> list[str]:
    """A problem in lines: where and what, then its hint."""
    place = f"{problem['line']}:{problem['column']}: " if problem.get("line") else ""
    key = f"{problem['key']}: " if problem.get("key") else ""
    got = f" (got {problem['value']})" if problem.get("value") is not None else ""
    hint = [f"hint: {problem['hint']}"] if problem.get("hint") else []
    return [f"{place}{key}{problem.get('message')}{got}", *hint]


class ReloadFailedError(BadCallError):
    """The specs could not be read as a whole; everything stays as it was."""

    @classmethod
    def words(cls, method: str, told: Mapping[str, Any]) -> tuple[str, str | None]:
        """As CallError."""
        del method
        return f"nothing was reloaded: {told.get('message')}", told.get("hint")


class NotAuditableError(CallError):
    """The VM has no memory to audit in the state that it is in."""

    exit_code = Exit.UNSEEN
    vm: str
    state: str


class AuditFailedError(CallError):
    """The audit could not be done."""

    exit_code = Exit.UNSEEN
    vm: str


class _NoMemoryError(CallError):
    """The VM has no memory to give, and why."""

    exit_code = Exit.HOST

    @classmethod
    def words(cls, method: str, told: Mapping[str, Any]) -> tuple[str, str | None]:
        """As CallError."""
        return f"{method} {told.get('vm')}: {told.get('message')}", told.get("hint")


class NotReadyError(_NoMemoryError):
    """The VM has no memory to hand out, and waiting alone wouldn't change that."""

    vm: str
    state: str


class DoesNotFitError(_NoMemoryError):
    """Admission refused the VM; nothing was allocated."""

    vm: str
    refusals: list[Refusal]


class ProvisioningFailedError(_NoMemoryError):
    """The memory could not be brought about; what was taken was given back."""

    vm: str
    reason: str
    host_node: int | None
    needed_bytes: int
    available_bytes: int


class NotSupportedByKernelError(_NoMemoryError):
    """The kernel lacks a feature that this takes."""

    vm: str
    feature: str


class AlreadyOwnedError(CallError):
    """Another process holds the VM's memory."""

    exit_code = Exit.HOST
    vm: str
    holder_pid: int

    @classmethod
    def words(cls, method: str, told: Mapping[str, Any]) -> tuple[str, str | None]:
        """As CallError."""
        vm, pid = told.get("vm"), told.get("holder_pid")
        return (
            f"{method} {vm}: process {pid} holds its memory",
            f"end that process, or have gmemd forget it: gmemd release --force {vm}",
        )


class LayoutMismatchError(_NoMemoryError):
    """Regions, or a running VMM's memory, are not what the spec says; nothing was taken."""

    exit_code = Exit.USAGE
    vm: str
    guest_node: int | None


class AmbiguousError(_NoMemoryError):
    """What is asked for could be any of several things; nothing was taken."""

    exit_code = Exit.USAGE
    vm: str
    candidates: list[Candidate]

    @classmethod
    def words(cls, method: str, told: Mapping[str, Any]) -> tuple[str, str | None]:
        """As CallError."""
        message, hint = super().words(method, told)
        candidates = [f"\n  {candidate.get('what')}" for candidate in told.get("candidates") or ()]
        return f"{message}{''.join(candidates)}", hint


class FdRejectedError(BadCallError):
    """File descriptor number ``index`` of the call is not what it should be."""

    index: int
    reason: str

    @classmethod
    def words(cls, method: str, told: Mapping[str, Any]) -> tuple[str, str | None]:
        """As CallError."""
        index = told.get("index")
        which = f"file descriptor {index}: " if isinstance(index, int) and index >= 0 else ""
        return f"{method}: {which}{told.get('reason')}", None


class TimedOutError(CallError):
    """The memory isn't there in time; its provisioning goes on."""

    exit_code = Exit.HOST
    vm: str
    timeout_ms: int
    state: str
    progress_ratio: float | None

    @classmethod
    def words(cls, method: str, told: Mapping[str, Any]) -> tuple[str, str | None]:
        """As CallError."""
        vm, ratio = told.get("vm"), told.get("progress_ratio")
        done = f", {ratio:.0%} done" if ratio is not None else ""
        seconds = (told.get("timeout_ms") or 0) / 1000
        return (
            f"{method} {vm}: not there after {seconds:g} s: {told.get('state')}{done}",
            f"what was begun goes on: `gmemd status {vm}` shows it",
        )


_ERRORS: dict[str, type[CallError]] = {
    "AlreadyOwned": AlreadyOwnedError,
    "Ambiguous": AmbiguousError,
    "AuditFailed": AuditFailedError,
    "BadSpec": BadSpecError,
    "DoesNotFit": DoesNotFitError,
    "FdRejected": FdRejectedError,
    "InterfaceNotFound": NoSuchMethodError,
    "InvalidParameter": InvalidParameterError,
    "LayoutMismatch": LayoutMismatchError,
    "MethodNotFound": NoSuchMethodError,
    "NoSuchVM": NoSuchVMError,
    "NotAuditable": NotAuditableError,
    "NotReady": NotReadyError,
    "NotSupportedByKernel": NotSupportedByKernelError,
    "PermissionDenied": RefusedError,
    "ProvisioningFailed": ProvisioningFailedError,
    "ReloadFailed": ReloadFailedError,
    "Timeout": TimedOutError,
}


def error_of(method: str, name: str, parameters: dict[str, Any]) -> CallError:
    """Turn a varlink error, by its full name, into an exception with a message and a way out."""
    short = name.rpartition(".")[2]
    kind = _ERRORS.get(short)
    if kind is None:
        message = parameters.get("message") or name
        return CallError(short, parameters, f"{method}: {message}", hint=parameters.get("hint"))
    message, hint = kind.words(method, parameters)
    return kind(short, parameters, message, hint=hint)


@contextmanager
def reaching(socket_path: Path) -> Iterator[None]:
    """Turn failures of the connection into NoDaemonError, or RefusedError."""
    try:
        yield
    except OSError as error:
        raise _unreachable(socket_path, error) from error


def _unreachable(socket_path: Path, error: OSError) -> GmemdError:
    """Tell an absent daemon from one that may not be reached."""
    why = error.strerror or str(error) or type(error).__name__
    if isinstance(error, PermissionError):
        return RefusedError(
            "PermissionDenied",
            {},
            f"connecting to the daemon at {socket_path}: {why}",
            hint="run it as root, or see who may open the socket: "
            f"ls -ld {socket_path.parent} {socket_path}",
        )
    return NoDaemonError(
        f"no daemon answers at {socket_path}: {why}",
        hint="start it with `systemctl start gmemd` (or `gmemd daemon`), or name its socket "
        "with --socket",
    )
