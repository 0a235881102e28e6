"""Plan against audit: drift, its cause and its remedy. Pure."""
