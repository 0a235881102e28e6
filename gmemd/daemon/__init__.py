"""The service: reconcile loop, varlink API, reload, systemd."""
