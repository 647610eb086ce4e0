"""`cac-align score`: score video files with a reward; prints one row per video, as a table or as JSON
Lines.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cac_align.cli.options import (
    add_reward_options,
    add_verb,
    check_positive,
    check_writable,
    input_path,
    stated_domain,
)
from cac_align.cli.video_arguments import expand_videos, listed_prompts
from cac_align.core.prompts import read_prompts
from cac_align.core.text import check_prompt

if TYPE_CHECKING:
    from cac_align.rewards.reward import Reward, Score

# How many videos are judged together, after which results appear; more where one prompt has more and its videos are
# compared with each other.
_CHUNK = 16


def add_score(verbs: Any) -> None:
    """The options of `cac-align score`."""
    parser = add_verb(verbs, "score", run_score, "score videos with a reward")
    parser.add_argument(
        "videos",
        type=input_path,
        nargs="+",
        metavar="VIDEO",
        help="video files, folders of them or of one video's numbered images (with --fps), or patterns",
    )
    parser.add_argument("--prompt", help="the prompt that all these videos were made from")
    parser.add_argument(
        "--prompts", type=Path, help="prompts per video: one line per video, or JSON Lines with video and prompt"
    )
    parser.add_argument(
        "--fps", type=float, help="the videos' true frame rate: of images, or where their container is wrong (Wan: 16)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="JSON Lines instead of a table")
    form.add_argument("--csv", action="store_true", help="CSV instead of a table, one row per video")
    parser.add_argument("--html", type=Path, help="also write one page with every clip, its boxes, window and reason")
    parser.add_argument("--ledger", type=Path, help="file that keeps scores; videos in it are not judged again")
    add_reward_options(parser)


def run_score(options: argparse.Namespace) -> int:
    """Score the videos and print them in the order of the command line.

    Returns 1 where a video has no score.
    """
    from cac_align.rewards.cached import cached
    from cac_align.rewards.combine import compares_videos
    from cac_align.rewards.ledger import Ledger
    from cac_align.rewards.reachable import load_reachable
    from cac_align.runs.progress import progress_bar

    videos = expand_videos(options.videos)
    check_positive("--fps", options.fps)
    listed = listed_prompts(videos) if options.prompt is None and options.prompts is None else None
    prompts = listed or video_prompts(videos, options.prompt, options.prompts)
    if not any(Path(video).exists() for video in videos):
        raise ValueError(f"{videos[0]}: no such file" + (", nor any of the others" if len(videos) > 1 else ""))
    check_writable("--html", options.html)
    ledger = None if options.ledger is None else Ledger(options.ledger)
    reward = load_reachable(options.reward, options.overrides, deferred=ledger is not None)
    judge = reward if ledger is None else cached(reward, ledger)
    whole_prompts = compares_videos(reward) is not None
    found: dict[int, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    with stated_domain(reward), progress_bar(len(videos), "judging") as bar:
        for chunk in chunks(prompts, whole_prompts=whole_prompts):
            paths, texts = [videos[n] for n in chunk], [prompts[n] for n in chunk]
            found.update(zip(chunk, score_files(judge, paths, texts, options.fps), strict=True))
            while len(rows) in found:  # in the order of the command line
                rows.append(found.pop(len(rows)))
                if options.json:
                    print(json.dumps(rows[-1]), flush=True)
            bar.update(len(chunk))
    if options.csv:
        print(score_csv(rows), end="")
    elif not options.json:
        print(score_table(rows, scale_texts(reward)))
    if options.html is not None:
        from cac_align.evaluation.pages.score_page import write_score_page

        print(f"page: {write_score_page(rows, options.html, scales=scale_texts(reward))}", file=sys.stderr)
    missing = [row for row in rows if row["score"] is None]
    if missing:
        print(f"{len(missing)} of {len(rows)} videos have no score", file=sys.stderr)
    return 1 if missing else 0


def chunks(prompts: Sequence[str], *, whole_prompts: bool) -> Iterator[list[int]]:
    """Positions of the videos that are judged together, ``_CHUNK`` at most.

    whole_prompts: keep all videos of one prompt in one chunk, however many they are.
    """
    groups: dict[str | int, list[int]] = {}
    for position, prompt in enumerate(prompts):
        groups.setdefault(prompt if whole_prompts else position, []).append(position)
    chunk: list[int] = []
    for members in groups.values():
        if chunk and len(chunk) + len(members) > _CHUNK:
            yield chunk
            chunk = []
        chunk = chunk + members
    if chunk:
        yield chunk


def score_files(
    reward: Reward, paths: Sequence[str], prompts: Sequence[str], fps: float | None
) -> list[dict[str, Any]]:
    """One row per file, in order: video, prompt, fps, score, parts, judgement, error, provenance,
    and the domain that the reward states, if it does.

    A file that cannot be read gets a row with an error; the others are scored as usual.
    """
    from cac_align.core.video import Video
    from cac_align.rewards.domain import domain_name
    from cac_align.rewards.reward import Score

    scores: dict[int, Score] = {}
    opened: dict[int, Video] = {}
    for position, path in enumerate(paths):
        try:
            opened[position] = Video.open(path, fps=fps)
        except ValueError as error:
            scores[position] = Score.missing(f"video: {error}", provenance=reward.provenance)
    if opened:
        found = reward([prompts[position] for position in opened], list(opened.values()))
        scores.update(zip(opened, found, strict=True))
    return [
        {
            "video": str(path),
            "prompt": prompt,
            "fps": opened[position].fps if position in opened else None,
            **scores[position].to_json(),
            "domain": domain_name(scores[position].provenance),
        }
        for position, (path, prompt) in enumerate(zip(paths, prompts, strict=True))
    ]


def video_prompts(videos: Sequence[str], prompt: str | None, file: Path | None) -> list[str]:
    """The prompt of every video, from one text or a file.

    Raises ``ValueError`` when a video has none.
    """
    if prompt is not None and file is None:
        check_prompt(prompt, "--prompt")
        if not prompt.strip():
            raise ValueError("--prompt is empty; pass the text that these videos were made from")
        return [prompt] * len(videos)
    if prompt is not None or file is None:
        raise ValueError("pass either --prompt TEXT or --prompts FILE")
    rows = read_prompts(file)
    if any("video" in row for row in rows):
        by_video = _prompt_by_video(rows, file)
        by_name: dict[str, str | None] = {}
        for video, text in by_video.items():
            if by_name.setdefault(Path(video).name, text) != text:
                by_name[Path(video).name] = None  # two videos of one name: only their whole paths tell them apart
        unknown = [video for video in videos if video not in by_video and Path(video).name not in by_name]
        if unknown:
            raise ValueError(f"{file} has no prompt for {unknown[0]}")
        texts: list[str] = []
        for video in videos:
            text = by_video[video] if video in by_video else by_name[Path(video).name]
            if text is None:
                raise ValueError(
                    f"{file} names several videos called {Path(video).name}, with different prompts, and none of them "
                    f"as {video}; write their paths there as they are passed here"
                )
            texts.append(text)
        return texts
    if len(rows) != len(videos):
        raise ValueError(f"{file} holds {len(rows)} prompts for {len(videos)} videos; expected one line per video")
    return [row["prompt"] for row in rows]


def _prompt_by_video(rows: Sequence[Mapping[str, Any]], file: Path) -> dict[str, str]:
    """The prompt of each video that a prompts file names.

    Raises ``ValueError`` for rows that leave it open.
    """
    found: dict[str, str] = {}
    for row in rows:
        video, prompt = row.get("video"), row["prompt"]
        if not (isinstance(video, str) and video):
            raise ValueError(f"{file} names the video of some prompts, but not that of {prompt!r}; name all or none")
        if found.setdefault(video, prompt) != prompt:
            raise ValueError(
                f"{file} has two prompts for {video}: {found[video]!r} and {prompt!r}; keep the one it was made from"
            )
    return found


def scale_texts(reward: Reward) -> dict[str, str]:
    """The scale of the score and of each component in words, by column name."""
    from cac_align.rewards.combine import bounds_of

    texts = {}
    for name, one in {"score": reward, **getattr(reward, "components", {})}.items():
        bounds, cut = bounds_of(one), getattr(one, "cut", None)
        text = "no bounds" if bounds is None else f"{bounds[0]:g} to {bounds[1]:g}"
        texts[name] = text if cut is None else f"{text}, abnormal up to {cut:.3f}"
    return texts


def score_table(rows: Sequence[dict[str, Any]], scales: Mapping[str, str] | None = None) -> str:
    """The rows as a table for people: score, components, video, and the verdict with what the judge
    found.

    scales: ``scale_texts`` of the reward; its names but "score" are the components' columns.
    """
    scales = scales or {}
    columns = [name for name in scales if name != "score"] or _part_names(rows)
    width = {name: max(7, len(name)) for name in columns}
    lines = []
    if scales:
        lines.append("higher is better; " + "; ".join(f"{name}: {text}" for name, text in scales.items()))
    titles = "".join(f"  {name:>{width[name]}}" for name in columns)
    wide = max([len("video"), *(len(row["video"]) for row in rows)])
    lines.append(f"{'score':>7}{titles}  {'video':<{wide}}  verdict")
    for row in rows:
        values = "".join(f"  {_number(row['parts'].get(name)):>{width[name]}}" for name in columns)
        status = (row["judgement"] or {}).get("status")
        first, *others = verdict_lines(status, describe_findings(row))
        lines.append(f"{_number(row['score']):>7}{values}  {row['video']:<{wide}}  {first}")
        lines.extend(f"{'':>{7 + len(titles) + wide + 4}}{line}" for line in others)
    return "\n".join(lines)


def verdict_lines(status: str | None, findings: Sequence[str]) -> list[str]:
    """The verdict column of one row: "normal", "abnormal" with the first anomaly, or "none" with the
    reason; further anomalies are lines of their own.
    """
    if not findings:
        return [status or "none"]
    return [f"{status or 'none'} {findings[0]}", *findings[1:]]


def score_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as CSV: video, prompt, score, verdict, every part under its name, findings, error and
    domain. A missing value is an empty cell.
    """
    parts = list(dict.fromkeys(name for row in rows for name in row["parts"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "prompt", "score", "verdict", *parts, "findings", "error", "domain"])
    for row in rows:
        findings = [] if row["error"] else describe_findings(row)
        values = [row["video"], row["prompt"], row["score"], (row["judgement"] or {}).get("status")]
        values += [row["parts"].get(name) for name in parts]
        writer.writerow([*values, "; ".join(findings), row["error"], row["domain"]])
    return text.getvalue()


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _part_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The first four parts of a score that is no combination."""
    return list(dict.fromkeys(name for row in rows for name in row["parts"] if "/" not in name))[:4]


def describe_findings(row: dict[str, Any]) -> list[str]:
    """What the judge found, in words: one line per anomaly, or the reason why there is no score."""
    from cac_align.core.judgement import Window

    if row["error"]:
        return [f"no score: {row['error']}"]
    judgement = row["judgement"]
    if not judgement or judgement["status"] != "abnormal":
        return []
    lines = []
    for anomaly in judgement["anomalies"]:
        window = anomaly["window"]
        when = "time not given"
        if window:
            shown = Window(**window).lasting(1 / row["fps"] if row.get("fps") else 0.0)
            when = f"{shown.start_s:.2f}-{shown.end_s:.2f} s"
        lines.append(f"{when} {anomaly['type']}: {anomaly['reason']}")
    return lines
