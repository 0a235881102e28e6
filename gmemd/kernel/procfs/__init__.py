"""Parsers of the kernel's text files. Pure text in, frozen values out; the root is an argument."""
