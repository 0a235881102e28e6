"""What a reload changed, for people and for the API. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gmemd.daemon.desired import compare
from gmemd.daemon.varlink.told import told_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gmemd.daemon.desired import Desired
    from gmemd.daemon.varlink.interface import ReloadResult
    from gmemd.spec.config import DaemonConfig
    from gmemd.spec.model import VmSpec


def report(
    before: Desired, after: Desired, holding: Mapping[str, VmSpec], notes: list[str]
) -> ReloadResult:
    """Tell what is different; ``holding`` are the specs by which VMs have memory now."""
    both = before.specs.keys() & after.specs.keys()
    in_force = {**before.specs, **holding}
    changes = {name: compare(in_force[name], after.specs[name]) for name in sorted(both)}
    pending = [name for name, change in changes.items() if change.shape and name in holding]
    changed = [name for name, change in changes.items() if change and name not in pending]
    return {
        "successful": not after.problems,
        "added": sorted(after.specs.keys() - before.specs.keys()),
        "changed": changed,
        "pending": pending,
        "removed": sorted(before.names - after.names),
        "unchanged": len(both) - len(changed) - len(pending),
        "problems": [told_problem(problem) for problem in after.problems],
        "notes": notes
        + [f"{unread} isn't read: {first} is VM {first.stem}" for unread, first in after.shadowed],
    }


def summary(result: ReloadResult) -> str:
    """One line for the log."""
    words = [
        f"{len(result['added'])} added",
        f"{len(result['changed'])} changed",
        f"{len(result['removed'])} removed",
        f"{result['unchanged']} unchanged",
    ]
    if result["pending"]:
        words.append(f"{len(result['pending'])} pending")
    if result["problems"]:
        broken = {problem.file for problem in result["problems"]}
        words.append(f"{len(broken)} {'file' if len(broken) == 1 else 'files'} broken")
    return ", ".join(words)


def config_notes(old: DaemonConfig, new: DaemonConfig) -> list[str]:
    """What of a changed configuration takes effect with the next start only."""
    changed = {
        "socket": old.socket != new.socket,
        "state_directory": old.state_directory != new.state_directory,
        "metrics: listen": old.metrics.listen != new.metrics.listen,
        "metrics: web_config": old.metrics.web_config != new.metrics.web_config,
    }
    return [f"{key} changed: restart gmemd for it" for key, differs in changed.items() if differs]
