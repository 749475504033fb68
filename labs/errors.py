"""The one exception that labs raises for people to read."""

from __future__ import annotations


class LabError(Exception):
    """What happened and where (`message`), and the command to run next (`hint`)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  Next: {self.hint}" if self.hint else self.message


class UsageError(LabError):
    """Wrong use: an unknown lab, variant, target or parameter, or a parameter of the wrong type."""
