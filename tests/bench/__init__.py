"""What gmemd costs, beside what the kernel and other tools cost in the same run."""
