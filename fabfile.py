"""fab install, status, logs, stop, destroy: see `fab --list` and provision/tasks.py."""

from provision.tasks import destroy, install, logs, status, stop

__all__ = ["destroy", "install", "logs", "status", "stop"]
