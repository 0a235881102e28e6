"""Talking to the daemon from other programs. Imports nothing beyond the standard library."""
