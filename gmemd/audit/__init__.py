"""Where the pages are: residency and placement."""
