import errno

import pytest

from gmemd.errors import Exit
from gmemd.kernel.errors import KernelError, errno_name, injected_failure, invoke


def test_an_error_names_call_errno_meaning_and_purpose() -> None:
    error = KernelError("mbind", errno.EINVAL, "setting bind {5} on 4096 bytes")
    assert str(error) == "mbind: EINVAL (Invalid argument): setting bind {5} on 4096 bytes"
    assert (error.call, error.errno, error.errno_name) == ("mbind", errno.EINVAL, "EINVAL")
    assert error.exit_code is Exit.HOST


@pytest.mark.parametrize(("number", "name"), [(95, "EOPNOTSUPP"), (133, "EHWPOISON"), (999, "999")])
def test_names_are_the_kernels(number: int, name: str) -> None:
    assert errno_name(number) == name


@pytest.mark.parametrize(
    ("call", "number", "word"),
    [
        ("mbind", errno.EPERM, "seccomp"),
        ("open /dev/kvm", errno.EACCES, "group"),
        ("mmap", errno.ENODEV, "MMAP"),
        ("pidfd_getfd", errno.EPERM, "CAP_SYS_PTRACE"),
        ("cachestat", errno.ENOSYS, "6.5"),
    ],
)
def test_a_known_failure_has_a_way_out(call: str, number: int, word: str) -> None:
    assert word in str(KernelError(call, number, "trying").hint)


def test_an_unknown_failure_claims_none() -> None:
    assert KernelError("mbind", errno.ENOMEM, "trying").hint is None


def test_a_hint_of_the_caller_comes_first() -> None:
    assert KernelError("mbind", errno.EPERM, "trying", hint="ask").hint == "ask"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
def test_what_is_not_permitted_exits_so(number: int) -> None:
    assert KernelError("mbind", number, "trying").exit_code is Exit.NOT_PERMITTED


def test_an_injected_failure_comes_once_and_in_its_turn() -> None:
    with injected_failure("answer", errno.ENOMEM, after=1):
        assert invoke("answer", lambda: 42, what="asking") == 42
        with pytest.raises(KernelError, match="answer: ENOMEM"):
            invoke("answer", lambda: 42, what="asking")
        assert invoke("answer", lambda: 42, what="asking") == 42
    assert invoke("answer", lambda: 42, what="asking") == 42
