"""VMMs' command lines: what each VMM was told of its guest's memory, by its own syntax."""
