"""The metrics as text: what prometheus-client renders, and the lines of VMs, of one snapshot."""

from __future__ import annotations

import re
from threading import Lock
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gmemd.export.metrics import GmemdCollector, ObservationCollector
from gmemd.export.vm_metrics import FAMILIES, lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from prometheus_client import Metric

    from gmemd.export.instruments import Counters
    from gmemd.export.snapshot import Snapshot, VmStatus
    from gmemd.export.vm_metrics import VmFamily

_END = b"# EOF\n"
_DOTS = re.compile(r";\s*escaping=dots\b")
"""A way to write names that would change ours; no other one does. It isn't offered."""


class Exposition:
    """Renders snapshots, for any number of threads; those that want the same one share the work.

    With ``counters`` it is a daemon's, else that of one look at the running VMs. ``others`` are
    rendered besides.
    """

    def __init__(self, counters: Counters | None = None, others: Iterable[Collector] = ()) -> None:
        self._counters = counters
        self._process: list[Collector] = [*others]
        if counters is not None:
            self._process += [ProcessCollector(registry=None), PlatformCollector(registry=None)]
            self._process.append(GCCollector(registry=CollectorRegistry()))
        self._lock = Lock()
        self._lines: dict[str, tuple[VmStatus, tuple[str, ...]]] = {}
        self._with_memory: frozenset[int] = frozenset()
        self._headers: dict[tuple[str, bool], bytes] = {}
        self._latest: tuple[Snapshot, tuple[bytes, ...]] | None = None

    def render(
        self, snapshot: Snapshot, accept: str = "", names: Collection[str] = ()
    ) -> tuple[str, bytes]:
        """Content type and text in the format that is asked for; with ``names`` of these alone."""
        encode, content_type = _encoder(accept)
        registry = CollectorRegistry(auto_describe=False)
        if self._counters is None:
            registry.register(ObservationCollector(snapshot))
        else:
            registry.register(GmemdCollector(lambda: snapshot, self._counters))
        for collector in self._process:
            registry.register(collector)
        chosen = registry.restricted_registry(names) if names else registry
        first = encode(chosen)
        open_metrics = first.endswith(_END)
        parts = [first.removesuffix(_END)]
        for family, lines in zip(FAMILIES, self._of_vms(snapshot), strict=True):
            if not names or family.name in names:
                parts += (self._header(family, encode, open_metrics=open_metrics), lines)
        if open_metrics:
            parts.append(_END)
        return content_type, b"".join(parts)

    def _of_vms(self, snapshot: Snapshot) -> tuple[bytes, ...]:
        """The lines of all VMs, by family; only those VMs cost that are another than before."""
        with self._lock:
            if self._latest is None or self._latest[0] is not snapshot:
                self._latest = snapshot, self._assembled(snapshot)
            return self._latest[1]

    def _assembled(self, snapshot: Snapshot) -> tuple[bytes, ...]:
        host = snapshot.host
        nodes = host.nodes if host is not None else ()
        with_memory = frozenset(node.id for node in nodes if node.has_memory)
        before = self._lines if with_memory == self._with_memory else {}
        lines: dict[str, tuple[VmStatus, tuple[str, ...]]] = {}
        for vm in snapshot.vms:
            known = before.get(vm.vm)
            same = known is not None and known[0] is vm
            lines[vm.vm] = known if same and known else (vm, lines_of(vm, with_memory))
        self._lines, self._with_memory = lines, with_memory
        families = zip(*(texts for _, texts in lines.values()), strict=True)
        return tuple("".join(texts).encode() for texts in families) or (b"",) * len(FAMILIES)

    def _header(
        self,
        family: VmFamily,
        encode: Callable[[CollectorRegistry], bytes],
        *,
        open_metrics: bool,
    ) -> bytes:
        """HELP and TYPE of a family, as prometheus-client writes them in that format."""
        key = family.name, open_metrics
        if key not in self._headers:
            registry = CollectorRegistry(auto_describe=False)
            registry.register(_Empty(family))
            self._headers[key] = encode(registry).removesuffix(_END)
        return self._headers[key]


def _encoder(accept: str) -> tuple[Callable[[Any], bytes], str]:
    """What writes the format that an Accept header asks for, or the plain one where it is absurd.

    prometheus-client reads a version without checking what it is.
    """
    try:
        return choose_encoder(_DOTS.sub("", accept))
    except (TypeError, ValueError):
        return choose_encoder("")


class _Empty(Collector):
    """A family without a sample."""

    def __init__(self, family: VmFamily) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        """The family."""
        name, text = self._family.name, self._family.text
        if self._family.is_info:
            yield InfoMetricFamily(name.removesuffix("_info"), text)
        else:
            yield GaugeMetricFamily(name, text)
