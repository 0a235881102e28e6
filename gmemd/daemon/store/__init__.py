"""What outlives the daemon: memory and holders in systemd's fd store, and what is known of them."""
