"""The varlink interface io.gmemd: its transport, its types, and what each method does."""
