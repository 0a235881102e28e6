"""Which errnos a call can return where gmemd makes it, of those that aren't its own mistakes.

From the man pages and the kernel's code: EINVAL, EBADF and EFAULT for wrong arguments are left out,
and so is EINTR where Python repeats the call itself (PEP 475) or the kernel restarts it. What isn't
here isn't failed; the reasons stand in NEVER. EPIPE and ECONNRESET come from the other side's end
alone, which a call that is made to fail is not: other tests end it. EFAULT of UFFDIO_CONTINUE says
that a page is a hole, and ENOSYS of cachestat that the kernel has none, which it says every time.
"""

from __future__ import annotations

import re
from errno import (
    EACCES,
    EAGAIN,
    EBUSY,
    EFAULT,
    EINTR,
    EINVAL,
    EIO,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOSYS,
    EPERM,
    ESRCH,
    ETOOMANYREFS,
)

EHWPOISON = 133

_OF_A_PROCESS = re.compile(r"/proc/#/")
"""There ENOENT and ESRCH say that the process has ended or closed it: answers, and no failures."""

_DENIED_BY_SECCOMP = (EPERM,)

ERRNOS: dict[str, tuple[int, ...]] = {
    # kernel.c, scan.c, kept.c
    "open /dev/kvm": (EACCES, EMFILE, ENFILE, ENODEV, ENOMEM),
    "KVM_CREATE_VM": (EBUSY, EINTR, EMFILE, ENFILE, ENOMEM),
    "KVM_CREATE_GUEST_MEMFD": (EMFILE, ENFILE, ENOMEM, EINVAL),
    "memfd_create": (EMFILE, ENFILE, ENOMEM, *_DENIED_BY_SECCOMP),
    "ftruncate": (ENOMEM, EINTR, ENOSPC),  # huge pages are reserved, cgroups charged
    "fallocate": (EINTR, ENOMEM, ENOSPC, EHWPOISON, *_DENIED_BY_SECCOMP),
    "fstatfs": (EIO, ENOMEM),
    "statx": (ENOMEM, *_DENIED_BY_SECCOMP),
    "mmap": (ENOMEM, EAGAIN, EPERM),
    "madvise": (EINTR, ENOMEM, EHWPOISON, EFAULT, EAGAIN, *_DENIED_BY_SECCOMP),
    "mincore": (ENOMEM, EAGAIN, *_DENIED_BY_SECCOMP),
    "cachestat": _DENIED_BY_SECCOMP,
    "mbind": (ENOMEM, EIO, EINVAL, *_DENIED_BY_SECCOMP),
    "get_mempolicy": (ENOMEM, *_DENIED_BY_SECCOMP),
    "set_mempolicy": (ENOMEM, EINVAL, *_DENIED_BY_SECCOMP),
    "move_pages": (ENOMEM, ESRCH, EACCES, *_DENIED_BY_SECCOMP),
    "userfaultfd": (EMFILE, ENFILE, ENOMEM, ENOSYS, *_DENIED_BY_SECCOMP),
    "UFFDIO_API": (EINVAL,),  # a kernel without minor faults of this memory
    "UFFDIO_REGISTER": (ENOMEM, EBUSY, EINVAL),
    "UFFDIO_CONTINUE": (EAGAIN, ENOMEM, ESRCH, EHWPOISON),
    "PAGEMAP_SCAN": (EINTR, ENOMEM, EFAULT),
    "pidfd_open": (EMFILE, ENFILE, ENOMEM, ESRCH),
    "pidfd_getfd": (EMFILE, EPERM, ESRCH),
    "prctl": _DENIED_BY_SECCOMP,
    # Python's own
    "open": (EMFILE, ENFILE, ENOMEM, EACCES, ENOENT),
    "read": (ENOMEM, ESRCH, EIO),
    "write": (EIO, ENOMEM, ENOSPC, EACCES),
    "readlink": (EACCES, ENOENT, ENOMEM),
    "listdir": (EMFILE, ENFILE, ENOMEM, EACCES, ENOENT),
    "stat": (EACCES, ENOENT, ENOMEM),
    "fstat": (EIO, ENOMEM),
    "getxattr": (ENOMEM, EACCES),
    "mkdir": (ENOSPC, ENOMEM, EACCES),
    "rmdir": (EBUSY, EACCES),
    "dup": (EMFILE,),
    "fcntl F_DUPFD_CLOEXEC": (EMFILE,),
    "fcntl F_GETFL": _DENIED_BY_SECCOMP,
    "clone": (EAGAIN, ENOMEM, EMFILE),
    "thread": (EAGAIN,),  # pids.max, TasksMax=
    "fsync": (EIO, ENOSPC),
    "pwrite": (EIO, ENOSPC),
    "socketpair": (EMFILE, ENFILE, ENOMEM),
    "send": (ENOBUFS, ENOMEM),
    "sendmsg": (ENOBUFS, ENOMEM, ETOOMANYREFS),
    "recv": (ENOMEM,),
    "recvmsg": (ENOMEM,),
    "sched_setaffinity": (EINVAL, EPERM, ESRCH),
}

NEVER: dict[str, str] = {
    "KVM_CHECK_EXTENSION": "reads a table of the kernel's; an unknown capability is 0, no error",
    "fcntl F_GET_SEALS": "EINVAL for what has no seals is its answer, and no error",
    "fcntl F_SETFD": "sets a bit in the process' own table",
    "munmap": "all of a mapping of one's own; ENOMEM is for one that has to be split",
    "close": "frees the descriptor whatever it returns (close(2))",
}


def errnos_of(call: str) -> tuple[int, ...]:
    """The errnos that a call can return; of those to which a path is given by their first word."""
    if call in ERRNOS:
        return ERRNOS[call]
    errnos = () if call in NEVER else ERRNOS[call.split(maxsplit=1)[0]]
    if _OF_A_PROCESS.search(call):
        return tuple(each for each in errnos if each not in {ENOENT, ESRCH})
    return errnos
