"""The one DAG file of the labs: builds a DAG from every probe document in the folder `specs` beside it.

`labs.spec` checked the documents before it wrote them; `dag_builder`, in Airflow's config folder, builds the DAGs.
"""

from __future__ import annotations

import json
from pathlib import Path

from airflow.sdk import get_parsing_context
from dag_builder import build_dag

SPECS = Path(__file__).resolve().parent / "specs"
SMOKE = {
    "dag_id": "lab_smoke",
    "groups": [{"name": "smoke", "kind": "noop", "tasks": 1, "operator": {}}],
}

# A task process needs its own DAG only; building the others would be time that no user's DAG costs.
wanted = get_parsing_context().dag_id
for document in [SMOKE, *(json.loads(path.read_text()) for path in sorted(SPECS.glob("*.json")))]:
    if wanted in (None, document["dag_id"]):
        globals()[document["dag_id"]] = build_dag(document, is_paused_upon_creation=False, tags=["lab"])
