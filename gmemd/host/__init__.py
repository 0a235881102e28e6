"""What this machine has: nodes, zones, pools, cpuset and kernel features."""
