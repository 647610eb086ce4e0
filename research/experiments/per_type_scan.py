"""The per-type scan against the whole scan: recall, false alarms and cost of one judge on the same clips.

records of unseen clips → CaC with scan whole and scan per_type → one row each, and McNemar's test

    cac-align world --n 200 --seed 3100000 --world playground --out out/per_type
    python -m research.experiments.per_type_scan out/per_type/records.jsonl
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

from cac_align.core.video import Video
from cac_align.data.records import all_records
from cac_align.evaluation.bench.detection import JudgeReport, evaluate_judge
from cac_align.evaluation.bench.results import compare_judges
from cac_align.rewards.cac import CaC

HEAD = (
    "| scan | recall, anomalous | recall, normal | balanced accuracy | AUROC | no verdict | answers per clip "
    "| CPU seconds per clip |\n|---|---|---|---|---|---|---|---|"
)


def main(path: str) -> None:
    records, judge = all_records(path), CaC.miniature()
    videos = [Video.open(Path(path).parent / record.video, fps=record.fps, name=record.id) for record in records]
    reports: list[JudgeReport] = []
    print(HEAD)
    for scan in ("whole", "per_type"):
        asked = replace(judge, settings=replace(judge.settings, scan=scan))
        begun = time.process_time()
        scores = asked([record.prompt for record in records], videos)
        seconds = time.process_time() - begun
        report = evaluate_judge(records, scores, judge=scan, provenance=asked.provenance)
        answers = sum(len(score.evidence.turns) for score in scores if score.evidence is not None)
        names = ("anomalous.recall", "normal.recall", "balanced_accuracy")
        cells = [*(str(report.metrics[name]) for name in names), f"{report.calibration.auroc or float('nan'):.3f}"]
        cells += [f"{report.unscored} of {report.n}", f"{answers / len(records):.1f}", f"{seconds / len(records):.1f}"]
        print(f"| {scan} | " + " | ".join(cells) + " |", flush=True)
        reports.append(report)
    (compared,) = compare_judges(reports).comparisons
    print(compared.to_json())
    for report in reports:
        print(report.judge, {kind: str(one.recall) for kind, one in report.per_type.items() if one.recall.n})
        print(report.judge, sorted({one.error or "" for one in report.verdicts if one.status is None})[:3])


if __name__ == "__main__":
    main(sys.argv[1])
