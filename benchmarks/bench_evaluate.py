"""Time of `evaluate bench` on 10,000 stored judgements (the project holds it at ≤ 10 s), and of the statistics of 2,000 ratings.

generate records and two-turn judgements → write them as the ledger does → read, evaluate two judges' worth, tables, plots → seconds

Run: python benchmarks/bench_evaluate.py [--videos 10000] [--judges 1]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from pathlib import Path

from cac_align.core.judgement import ANOMALY_TYPES, Anomaly, Box, Judgement, Turn, Window
from cac_align.data.records import Record, read_records, write_records
from cac_align.evaluation.bench.bench import write_bench
from cac_align.evaluation.bench.detection import evaluate_judge
from cac_align.evaluation.bench.results import compare_judges
from cac_align.evaluation.bench.stored_scores import stored_scores
from cac_align.evaluation.bench.tables import to_markdown
from cac_align.rewards.reward import Score

FPS, FRAMES = 16.0, 81


def anomaly(rng: random.Random) -> Anomaly:
    """A defect of random type, time and place with a box on each frame that 8-fps sampling shows."""
    start = rng.randrange(0, FRAMES - 12)
    end = start + rng.randrange(2, 12)
    left, top = rng.randrange(0, 800), rng.randrange(0, 800)
    box = Box(left, top, left + rng.randrange(20, 200), top + rng.randrange(20, 200))
    boxes = dict.fromkeys(range(start + start % 2, end, 2), (box,))
    return Anomaly(
        rng.choice(ANOMALY_TYPES), Window(start / FPS, end / FPS), "the hand melts into the cup", "left hand", boxes
    )


def judgement(rng: random.Random, record: Record) -> Judgement:
    """Two full turns, as CaC keeps them, right four times of five."""
    right = rng.random() < 0.8
    bad = (record.status == "abnormal") == right
    found = (record.anomalies[0] if record.anomalies and rng.random() < 0.6 else anomaly(rng),) if bad else ()
    words, status = "frame by frame " * 60, "abnormal" if bad else "normal"
    log_p = (-0.1 - rng.random() * 2, -2.4 - rng.random())
    pair = log_p[::-1] if bad else log_p
    turns = [
        Turn(number, words, tuple(range(0, FRAMES, 4)), status, found, words, (), *pair)
        for number in ((1, 2) if bad else (1,))
    ]
    return Judgement(status, found, tuple(turns), *pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--judges", type=int, default=1)
    options = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        records = []
        for number in range(options.videos):
            found = (anomaly(rng),) if number % 2 else ()
            name = f"v{number:05}"
            status = "abnormal" if found else "normal"
            records.append(Record(name, f"{name}.mp4", "a prompt", FPS, FRAMES, 832, 480, status, found))
        write_records(root / "records.jsonl", records)
        with open(root / "ledger.jsonl", "w", encoding="utf-8") as ledger:
            for judge in range(options.judges):
                for record in records:
                    said = judgement(rng, record)
                    score = Score(said.reward, evidence=said, provenance={"model": f"judge {judge}"}).to_json()
                    row = {
                        "key": "0" * 64,
                        "kind": "score",
                        "prompt": record.prompt,
                        "video": record.id,
                        "reward": f"judge {judge}",
                    }
                    ledger.write(json.dumps(row | score) + "\n")
        size = (root / "ledger.jsonl").stat().st_size / 2**20

        marks = [("start", (time.perf_counter(), time.process_time()))]
        records = list(read_records(root / "records.jsonl"))
        scores = stored_scores(root / "ledger.jsonl", records)
        marks.append(("read", (time.perf_counter(), time.process_time())))
        reports = [evaluate_judge(records, rows, judge=name) for name, rows in scores.items()]
        marks.append(("evaluate", (time.perf_counter(), time.process_time())))
        bench = compare_judges(reports)
        to_markdown(bench)
        write_bench(bench, root / "out")
        marks.append(("tables and plots", (time.perf_counter(), time.process_time())))
    for (_, before), (name, after) in [*itertools.pairwise(marks), (marks[0], ("total", marks[-1][1]))]:
        print(f"{name:18} {after[0] - before[0]:6.2f} s wall {after[1] - before[1]:6.2f} s CPU")
    print(
        f"{options.videos} videos x {options.judges} judges, {size:.0f} MiB of judgements (held at 10 s for 10,000 x 1)"
    )
    print(f"accuracy {reports[0].metrics['accuracy']}, temporal IoU {reports[0].localisation['temporal']}")


if __name__ == "__main__":
    main()
