"""Places the memory of KVM guests on host NUMA nodes and shows where every page really is."""

__version__ = "0.1.0"
