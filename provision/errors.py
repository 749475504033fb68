"""The one exception that provision raises for people to read."""

from __future__ import annotations


class ProvisionError(Exception):
    """What happened and where (`message`), and the command to run next (`hint`)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  Next: {self.hint}" if self.hint else self.message


class UsageError(ProvisionError):
    """Wrong use of a command: an unknown variant, target, service or setting."""
