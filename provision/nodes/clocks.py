"""How far the clocks of the nodes are apart from this machine's."""

from __future__ import annotations

import time

from provision.nodes.session import Session

ASKED = 7


def measured(node: Session) -> dict[str, float]:
    """Return how far a node's clock is ahead of this machine's, in seconds, and how uncertain that is.

    Of several questions the one with the quickest answer counts; the clock was read somewhere within its time.
    """
    samples = []
    for _ in range(ASKED):
        before = time.time()
        there = node.call("clock")
        after = time.time()
        samples.append((after - before, there - (before + after) / 2))
    took, offset = min(samples)
    return {"clock_offset_s": round(offset, 6), "clock_uncertainty_s": round(took / 2, 6)}
