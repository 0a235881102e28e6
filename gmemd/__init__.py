"""Places the memory of KVM guests on host NUMA nodes and shows where every page really is."""
