"""What the operator asked for: VM specs and the daemon's configuration. Pure."""
