"""Running VMs: the processes that hold them, and the memory that these have."""
