"""What can go wrong with the lab itself, as opposed to what runs in it."""

from __future__ import annotations


class LabError(Exception):
    """The lab failed: its image couldn't be built, or its machine didn't run the command.

    ``hint`` says what to do; ``detail`` is the end of the log that shows why.
    """

    def __init__(self, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.detail = detail

    def explain(self) -> str:
        """Everything known about the failure, for a terminal."""
        lines = [f"lab: {self}"]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        if self.detail:
            lines.append(self.detail)
        return "\n".join(lines)
