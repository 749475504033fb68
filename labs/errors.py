"""The errors that labs raises for people to read: the same as provision's, under the words of a lab."""

from provision.errors import ProvisionError as LabError
from provision.errors import UsageError

__all__ = ["LabError", "UsageError"]
