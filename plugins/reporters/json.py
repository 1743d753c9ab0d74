"""`json`: the report for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from metarec import hookimpl
from metarec.evaluation import Report, Reporter


class JSONReporter(Reporter):
    """Writes ``report.json``: ``{"rows": […], "timings": {…}, "config": {…}, "versions": {…}}``.

    A row is one metric of one algorithm in one cell, as `metarec.evaluation.Row` describes it. What is undefined is
    null, so that any JSON reader takes it.
    """

    name = "json"
    file_name = "report.json"

    def render(self, report: Report) -> str:
        """The report as JSON, one row per line."""
        parts = {name: _plain(part) for name, part in asdict(report).items()}
        rows = ",\n".join(f"  {_text(row)}" for row in parts.pop("rows"))
        others = "".join(f',\n"{name}": {_text(part)}' for name, part in parts.items())
        return f'{{"rows": [\n{rows}\n]{others}}}\n'


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@hookimpl
def register_reporters(register: Callable[[type[Reporter]], None]) -> None:
    """Register `JSONReporter`."""
    register(JSONReporter)
