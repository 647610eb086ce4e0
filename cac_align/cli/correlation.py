"""`cac-align evaluate correlation`: does a reward agree with published human scores?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cac_align.cli.options import add_reward_options, add_verb, input_path, stated_domain


def add_correlation(kinds: Any) -> None:
    """The options of `cac-align evaluate correlation`."""
    parser = add_verb(
        kinds, "correlation", run_correlation, "a reward against published human scores: rank correlations, intervals"
    )
    parser.add_argument("source", choices=("tag", "videoscience", "jsonl"), help="whose human scores they are")
    parser.add_argument("scores", type=input_path, help="the file of human scores")
    parser.add_argument("--videos", type=Path, required=True, help="folder of the videos")
    parser.add_argument(
        "--prompts", type=Path, help="JSONL of {video, prompt}; videoscience: its prompts, JSONL of {vid, prompt}"
    )
    add_reward_options(parser)
    parser.add_argument("--ledger", type=Path, help="keep and reuse scores")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def run_correlation(options: argparse.Namespace) -> int:
    """Print the table. Returns 1 where a video has no score."""
    from cac_align.cli.score import score_files, video_prompts
    from cac_align.evaluation.correlation.agreement import rank_agreement
    from cac_align.evaluation.correlation.human_scores import find_videos
    from cac_align.rewards.cached import cached
    from cac_align.rewards.combine import compares_videos
    from cac_align.rewards.ledger import Ledger
    from cac_align.rewards.reachable import load_reachable
    from cac_align.runs.progress import progress_callback

    rows, notes = _read(options)
    paths = find_videos(rows, options.videos)
    kept = [(row, path) for row, path in zip(rows, paths, strict=True) if path is not None]
    prompts = [row.prompt for row, _ in kept]
    if options.prompts is not None and options.source != "videoscience":
        prompts = video_prompts([str(path) for _, path in kept], None, options.prompts)
    reward = load_reachable(options.reward, options.overrides, deferred=options.ledger is not None)
    if reason := compares_videos(reward):
        raise ValueError(f"{reason}, and here each video is scored by itself; name a reward that does that")
    judge = cached(reward, Ledger(options.ledger)) if options.ledger else reward
    show, values = progress_callback("video"), []
    with stated_domain(reward):
        for start in range(0, len(kept), 16):
            part = slice(start, start + 16)
            found = score_files(judge, [str(path) for _, path in kept[part]], prompts[part], None)
            values += [row["score"] for row in found]
            show(reward.name, len(values), len(kept))
    axes = list(dict.fromkeys(axis for row, _ in kept for axis in row.scores))
    groups = [row.prompt for row, _ in kept]
    results = [rank_agreement(axis, [row.scores.get(axis) for row, _ in kept], values, groups) for axis in axes]
    missing = {"videos_not_there": len(rows) - len(kept), "videos_without_score": values.count(None)}
    report = {"reward": reward.name, "source": options.source, **missing, "notes": notes}
    if options.json:
        print(json.dumps({**report, "axes": [one.to_json() for one in results]}, indent=1))
    else:
        print(
            "| axis | videos | prompts | Spearman | Kendall | pairs | pairs within a prompt |\n"
            "|---|---|---|---|---|---|---|"
        )
        for one in results:
            cells = [one.axis, one.n, one.prompts, one.spearman, one.kendall, one.pairs, one.pairs_within_prompt]
            print("| " + " | ".join(map(str, cells)) + " |")
        print(*(f"- {note}" for note in notes), sep="\n")
    if any(missing.values()):
        print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in missing.items()), file=sys.stderr)
    return 1 if any(missing.values()) else 0


def _read(options: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """The rows of human scores, and what to know about them."""
    from cac_align.evaluation.correlation.human_scores import read_jsonl, read_tag, read_videoscience

    if options.source == "tag":
        return read_tag(options.scores)
    if options.source == "jsonl":
        return read_jsonl(options.scores), []
    if options.prompts is None:
        raise ValueError("videoscience needs --prompts, its JSONL with vid and prompt")
    lines = [json.loads(line) for line in options.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not all(isinstance(row, dict) and {"vid", "prompt"} <= set(row) for row in lines):
        raise ValueError(f"{options.prompts}: expected vid and prompt in every line")
    prompts = {str(row["vid"]): str(row["prompt"]) for row in lines}
    generators = sorted(path.name for path in options.videos.iterdir() if path.is_dir())
    note = "The nesting of VideoScience-Bench's annotations could not be checked against the real file."
    return read_videoscience(options.scores, prompts, generators), [note]
