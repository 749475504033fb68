"""What is being measured now, from the kernel to whoever watches: one line of JSON per event."""

from __future__ import annotations

import json
import os
import time

# The runner names a file here; without it (JupyterLab) the notebook itself is the progress.
PROGRESS_VARIABLE = "AIRFLOW_LABS_PROGRESS"


def report(text: str) -> None:
    """Tell the watching command what happens now; does nothing when nobody watches."""
    path = os.environ.get(PROGRESS_VARIABLE)
    if path:
        with open(path, "a") as file:
            file.write(json.dumps({"time": time.time(), "text": text}) + "\n")
