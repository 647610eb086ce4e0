"""An API judge: any endpoint that speaks OpenAI's chat protocol scores a folder of videos; no GPU of yours.

Needs    an endpoint with a vision-language model, and its key in JUDGE_API_KEY (any text where it wants none)
Run      JUDGE_API_KEY=… python examples/real/api_judge.py VIDEOS --url https://HOST/v1 --model NAME
         VIDEOS is a folder with videos and a prompts.jsonl: {"video": "a.mp4", "prompt": "…"}, one line per video

Most endpoints give no probabilities, so each video is judged several times at a temperature, and the score is the share
of verdicts "normal": with five votes 0, 0.2, … 1, with many ties. Count the cost before a training run: every vote is
one request of all frames at 4 fps, and a second one of the suspicious window at 8 fps where the first says abnormal.

The output for examples/clips, with vLLM 0.32 on a CPU and the shipped small judge as the endpoint (started as in
served_judge.sh), asked as it has learnt to be asked, with the recipe's temperature of 0.7:

    JUDGE_API_KEY=none python examples/real/api_judge.py examples/clips --url http://127.0.0.1:8001/v1 --model cac \\
        --set wording=brief --set margin_s=0.25 --set max_new_tokens=400

    2 videos: at least 10 requests with 50 frames
    normal.mp4: 1.00, 5 of 5 votes are normal
    anomalous.mp4: 0.00, 0 of 5 votes are normal
      Motion Anomalies, 0.75 to 0.88 s: the blue ball suddenly disappears

At a temperature of 1 (--set vote_temperature=1.0) one of the five votes on anomalous.mp4 was "normal": 0.20. No hosted
endpoint was asked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cac_align import Video, load_reward


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", required=True, help="the endpoint, up to and with /v1")
    parser.add_argument("--model", required=True, help="the model's name there")
    parser.add_argument("--votes", type=int, default=5)
    parser.add_argument("--fps", type=float, help="the videos' true rate where their files are wrong (Wan: 16)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further keys of the judge")
    given = parser.parse_args()

    judge = {"model": given.url, "served_model": given.model, "votes": given.votes}
    keys = [*(f"{name}={value}" for name, value in judge.items()), *given.set]
    reward = load_reward("reward/api", [f"components.api.{key}" for key in keys])  # recipes/reward/api.yaml

    lines = (given.folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    videos = [Video.open(given.folder / row["video"], fps=given.fps) for row in rows]
    frames = sum(len(video.sample(4)) for video in videos)
    print(f"{len(videos)} videos: at least {given.votes * len(videos)} requests with {given.votes * frames} frames")

    for row, score in zip(rows, reward([row["prompt"] for row in rows], videos), strict=True):
        if not score.scored:
            print(f"{row['video']}: no score, because {score.error}")
            continue
        print(f"{row['video']}: {score.value:.2f}, {score.parts['votes_normal']:.0f} of {given.votes} votes are normal")
        for anomaly in score.evidence.anomalies:
            window = anomaly.window
            print(f"  {anomaly.type}, {window.start_s:.2f} to {window.end_s:.2f} s: {anomaly.reason}")


if __name__ == "__main__":
    main()
