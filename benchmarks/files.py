"""Files of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metarec.atomic import replacing


def write_json(path: Path, results: Any) -> None:
    """Write results as JSON, whole, in place of what is there; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as written:
        written.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
