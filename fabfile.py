"""fab up, install, workers, status, logs, stop, destroy: see `fab --list` and provision/tasks.py."""

from provision.tasks import destroy, install, logs, status, stop, up, workers

__all__ = ["destroy", "install", "logs", "status", "stop", "up", "workers"]
