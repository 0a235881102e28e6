"""The published snapshot as metrics, HTTP and JSON."""
