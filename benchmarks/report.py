"""How long a report of 50 pairs takes, how large it is, and how long the rating page needs to save an action.

python benchmarks/report.py [--pairs 50] [--frames 81] [--height 480] [--width 832] [--actions 300]

Limits (issue: report of 50 pairs ≤ 60 s on two cores and ≤ 30 MB; an action ≤ 50 ms). The videos are drifting textures with noise:
harder to encode than most generated video. CPU seconds are printed beside wall seconds, for machines that others use too.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np


def make(folder: Path, pairs: int, shape: tuple[int, int, int], shift: int) -> None:
    from cac_align.core.encoding import write_mp4

    frames, height, width = shape
    folder.mkdir()
    rows = []
    for number in range(pairs):
        rng = np.random.default_rng(number)
        small = rng.integers(0, 256, (height // 16 + 20, width // 16 + 20, 3), dtype=np.uint8)
        texture = np.kron(small, np.ones((16, 16, 1), np.uint8))
        pixels = np.stack([texture[t : t + height, (shift + 1) * t : (shift + 1) * t + width] for t in range(frames)])
        write_mp4(folder / f"{number:03d}.mp4", pixels, 16.0)
        rows.append({"video": f"{number:03d}.mp4", "prompt": f"prompt {number}", "seed": number})
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("pairs", 50), ("frames", 81), ("height", 480), ("width", 832), ("actions", 300)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for shift, group in enumerate(("before", "after")):
            make(root / group, options.pairs, (options.frames, options.height, options.width), shift)
        report_time(root, options.pairs)
        action_time(root, options.actions)


def report_time(root: Path, pairs: int) -> None:
    from cac_align.evaluation.report.report import write_report

    wall, cpu = time.perf_counter(), time.process_time()
    write_report(root / "before", root / "after", root / "report.html")
    size = (root / "report.html").stat().st_size / 1e6
    spent = f"{time.perf_counter() - wall:.1f} s wall, {time.process_time() - cpu:.1f} s CPU"
    print(f"report of {pairs} pairs: {spent}, {size:.1f} MB", flush=True)


def action_time(root: Path, actions: int) -> None:
    from fastapi.testclient import TestClient

    from cac_align.evaluation.human.app import create_rating_app

    with TestClient(
        create_rating_app(root / "before", database=root / "r.sqlite"), base_url="http://127.0.0.1"
    ) as client:
        shown = client.get("/api/task", params={"rater": "ann"}).json()
        last_known, spent = 0, []
        for number in range(actions):
            body = {"rater": "ann", "task": shown["task"], "clip": shown["clips"][0]["token"], "last_known": last_known}
            body |= {"kind": "box", "detail": {"anomaly": 0, "frame": number % 8, "box": [10, 10, 500, 600]}}
            start = time.perf_counter()
            answer = client.post("/api/action", json={**body, "client": f"benchmark-{number}"})
            spent.append(1000 * (time.perf_counter() - start))
            last_known = answer.json()["state"]["last"]
    median, slow = np.median(spent), np.quantile(spent, 0.95)
    print(f"an action is saved and answered in {median:.1f} ms (median), {slow:.1f} ms (95 %), {actions} on one clip")


if __name__ == "__main__":
    main()
