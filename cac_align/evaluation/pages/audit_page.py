"""The page of `cac-align evaluate reward`: verdict, flags, psychometric curves and all numbers.

AuditReport → audit.html
"""

from __future__ import annotations

from pathlib import Path

from cac_align.evaluation.audit.verdict import AuditReport, sentences, table_rows
from cac_align.evaluation.pages.page import format_number, format_percent, write_page


def write_audit_page(report: AuditReport, path: Path) -> Path:
    """Write the page and return its path."""
    found = report.findings
    tiles = [
        (format_percent(found.perception.falls.value), "of the defects lower it"),
        (format_number(found.localisation.time.iou.value, 2), "IoU of windows"),
        (format_number(found.localisation.space.iou.value, 2), "IoU of boxes"),
        (format_percent(found.groups.zero_std.value), "of the groups without spread"),
        (format_number(found.cost.seconds_per_video if found.cost else None, 2), "seconds per video"),
    ]
    return write_page(
        path,
        "audit.html.jinja",
        title=f"Is {report.reward} a reward?",
        self_contained=True,
        provenances=[report.provenance],
        passes=report.passes,
        sentences=sentences(report),
        flags=report.flags,
        tiles=tiles,
        curves=[(name.replace("_s", " in s"), points) for name, points in found.perception.curve.items()],
        rows=table_rows(report),
        shown=report.shown,
    )
