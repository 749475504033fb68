"""The random combinations of the exactness matrix."""

from __future__ import annotations

import pytest

from labs.limits import predict
from labs.matrix import POOL, draw_cells
from labs.pod_limits import PodRoom
from provision.variants import variant_named


def test_cells_in_pods_vary_the_quota_and_have_refused_pods_tried_again():
    settings = variant_named("kubernetes").effective_settings({})
    cells = draw_cells(3, 24, settings)
    assert len({cell.quota for cell in cells}) > 3
    assert all(cell.settings["kubernetes_executor.task_publish_max_retries"] == "-1" for cell in cells)
    for cell in cells:
        room = PodRoom({"node": 1000}, cell.quota)
        prediction = predict(cell.spec, {**settings, **cell.settings}, {POOL: cell.slots}, room=room)
        assert not prediction.exhausted
        assert cell.quota is None or prediction.peak <= cell.quota


@pytest.mark.parametrize("name", ["postgres", "celery", "kubernetes", "local-celery", "multiple"])
def test_every_cell_ends(name):
    """A task that wants more slots than its pool has would wait for ever."""
    for seed in range(8):
        for cell in draw_cells(seed, 12, variant_named(name).effective_settings({})):
            assert all(group.pool_slots <= cell.slots for group in cell.spec.groups)
