"""The errors of the varlink interface io.gmemd, with the fields that a program needs.

io.gmemd.varlink beside this file explains each. asyncvarlink reads the annotations at run time.
"""

from asyncvarlink import TypedVarlinkErrorReply

from gmemd.daemon.varlink.interface import INTERFACE, Candidate, Problem, Refusal


class NoSuchVM(TypedVarlinkErrorReply, interface=INTERFACE):
    """No VM of that name is known."""

    class Parameters:
        """What was asked for."""

        vm: str


class NotAuditable(TypedVarlinkErrorReply, interface=INTERFACE):
    """The VM has no memory to audit now."""

    class Parameters:
        """Its state, and why."""

        vm: str
        state: str
        message: str


class ReloadFailed(TypedVarlinkErrorReply, interface=INTERFACE):
    """Nothing was changed."""

    class Parameters:
        """Why, and the way out."""

        message: str
        hint: str | None


class AuditFailed(TypedVarlinkErrorReply, interface=INTERFACE):
    """The audit could not be done."""

    class Parameters:
        """Why, and the way out."""

        vm: str
        message: str
        hint: str | None


class BadSpec(TypedVarlinkErrorReply, interface=INTERFACE):
    """An inline spec is wrong."""

    class Parameters:
        """Everything that is wrong with it."""

        problems: list[Problem]


class NotReady(TypedVarlinkErrorReply, interface=INTERFACE):
    """The VM has no memory to hand out, and waiting wouldn't change that."""

    class Parameters:
        """Its state, why, and the way out."""

        vm: str
        state: str
        message: str
        hint: str | None


class DoesNotFit(TypedVarlinkErrorReply, interface=INTERFACE):
    """Admission refused the VM; nothing was allocated."""

    class Parameters:
        """Every reason, and the worst one's words."""

        vm: str
        refusals: list[Refusal]
        message: str
        hint: str | None


class ProvisioningFailed(TypedVarlinkErrorReply, interface=INTERFACE):
    """The memory could not be brought about; what was taken was given back."""

    class Parameters:
        """Where it ended, in bytes, and the way out."""

        vm: str
        reason: str
        host_node: int | None
        needed_bytes: int
        available_bytes: int
        message: str
        hint: str | None


class NotSupportedByKernel(TypedVarlinkErrorReply, interface=INTERFACE):
    """The kernel lacks what this takes."""

    class Parameters:
        """What it lacks, and the way out."""

        vm: str
        feature: str
        message: str
        hint: str | None


class AlreadyOwned(TypedVarlinkErrorReply, interface=INTERFACE):
    """Another process holds the VM's memory."""

    class Parameters:
        """Who, as a pid."""

        vm: str
        holder_pid: int


class LayoutMismatch(TypedVarlinkErrorReply, interface=INTERFACE):
    """The regions are not those of the spec; nothing was taken."""

    class Parameters:
        """The first guest node that doesn't match (null: none in particular), and why."""

        vm: str
        guest_node: int | None
        message: str
        hint: str | None


class Ambiguous(TypedVarlinkErrorReply, interface=INTERFACE):
    """What is asked for could be several things; nothing was taken."""

    class Parameters:
        """They, and how to tell which."""

        vm: str
        message: str
        hint: str | None
        candidates: list[Candidate]


class FdRejected(TypedVarlinkErrorReply, interface=INTERFACE):
    """A file descriptor is not what it should be; nothing was taken."""

    class Parameters:
        """Which, counted from 0 in the call's message, and why."""

        index: int
        reason: str


class Timeout(TypedVarlinkErrorReply, interface=INTERFACE):
    """The memory isn't there in time; what was begun goes on."""

    class Parameters:
        """How far it is."""

        vm: str
        timeout_ms: int
        state: str
        progress_ratio: float | None
