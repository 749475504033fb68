"""The local target: real processes on this machine, kept by supervisor; no root, no containers."""
