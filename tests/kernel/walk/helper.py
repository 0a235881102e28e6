"""What the walk has a helper process do before it becomes what it is: have its calls fail, too."""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from pathlib import Path

from gmemd.kernel import faults
from tests.kernel.walk.faults import HelpersFaults
from tests.kernel.walk.standins import put_in_place

BOOTSTRAP = """\
import sys
module, channel, parent, *sys.path[:] = sys.argv[1:]
from tests.kernel.walk import helper
helper.become(module, int(channel), int(parent), {directory!r})
"""

PROCESSES = {
    "gmemd.memory.creator_child": "creator",
    "gmemd.memory.prefault_child": "prefault",
}


def become(module: str, channel: int, parent: int, directory: str) -> None:
    """Be the helper process that the module makes."""
    main = importlib.import_module(module).main
    wanted = HelpersFaults(Path(directory), PROCESSES[module])
    put_in_place(wanted.errno_of)
    with ExitStack() as stack:
        stack.enter_context(faults.refusing(wanted.errno_of))
        main(channel, parent)
