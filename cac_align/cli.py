"""`cac-align`: every verb of the package. Progress goes to stderr, results to stdout; exit status 0 means: it did what was asked.

demo | score | best-of-n | world | evaluate | report | annotate | serve | doctor | vbench-env

Each verb runs again where it stopped. ``--set key=value`` overrides a recipe's keys (OmegaConf's dot notation).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cac_align.rewards.reward import Reward, Score

CHUNK = 16  # videos judged together by `score`; results appear, and are kept, chunk by chunk


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0 done, 1 done in part or a check failed, 2 wrong input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except ValueError as error:
        print(f"cac-align {options.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ncac-align {options.verb}: interrupted; the same command resumes", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) went away; nothing more can be said
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cac-align", description=__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run, verb=name)
        return sub

    demo = verb("demo", run_demo, "Best-of-5 with UnifiedReward + CaC on the miniature: videos, ledger, report.html")
    demo.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write (default: out/demo)")
    demo.add_argument("--n", type=int, default=5, help="candidates per prompt (default: 5)")
    demo.add_argument("--prompts", type=int, default=8, help="how many prompts (default: 8)")
    demo.add_argument("--seed", type=int, default=0)

    score = verb("score", run_score, "score videos with a reward")
    score.add_argument("videos", nargs="+", metavar="VIDEO", help="video files")
    score.add_argument("--prompt", help="the prompt all these videos were made from")
    score.add_argument("--prompts", type=Path, help="prompts per video: one line per video, or JSON Lines with video and prompt")
    score.add_argument("--fps", type=float, help="the videos' true frame rate, where their container is wrong (Wan: 16)")
    score.add_argument("--json", action="store_true", help="JSON Lines instead of a table")
    score.add_argument("--ledger", type=Path, help="cache and audit trail: scored videos are not judged again")
    _reward_options(score)

    best = verb("best-of-n", run_best_of_n, "generate N candidates per prompt, keep the best, and say why")
    best.add_argument("--prompts", type=Path, required=True, help="one prompt per line, or JSON Lines with a prompt field")
    best.add_argument("--n", type=int, help="candidates per prompt (default: the recipe's, 5)")
    best.add_argument("--out", type=Path, required=True, help="folder to write; the same command resumes in it")
    best.add_argument("--seed", type=int, help="first seed (default: the recipe's, 0)")
    best.add_argument("--recipe", type=Path, help="YAML with generator: and reward: (default: the miniature)")
    best.add_argument(
        "--candidates", type=Path, help="JSON Lines with prompt and video: choose among these instead of generating"
    )
    best.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    best.add_argument("--json", action="store_true", help="print selection.jsonl instead of a table")

    world = verb("world", run_world, "render miniature clips as mp4 with exact annotation records, half normal, half anomalous")
    world.add_argument("--n", type=int, required=True)
    world.add_argument("--seed", type=int, default=2_000_000, help="first seed; held-out seeds start at 2000000 (default)")
    world.add_argument("--out", type=Path, required=True)
    world.add_argument("--world", choices=("full", "studio"), default="full")
    return parser


def _reward_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reward", help="recipe YAML or module:Name (default: UnifiedReward + CaC, the miniature)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key")


def _version() -> str:
    from cac_align import __version__

    return f"cac-align {__version__}"


# ---- score --------------------------------------------------------------------------------------------------------


def run_score(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from cac_align.recipe import load_reward
    from cac_align.rewards.ledger import Ledger

    prompts = video_prompts(options.videos, options.prompt, options.prompts)
    reward = load_reward(options.reward, options.overrides)
    if options.ledger is not None:
        reward = Ledger(options.ledger).wrap(reward)
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(options.videos), unit="video", file=sys.stderr, disable=None) as bar:
        for start in range(0, len(options.videos), CHUNK):
            chunk = options.videos[start : start + CHUNK]
            for row in score_files(reward, chunk, prompts[start : start + CHUNK], options.fps):
                rows.append(row)
                if options.json:
                    print(json.dumps(row), flush=True)
            bar.update(len(chunk))
    if not options.json:
        print(score_table(rows))
    missing = [row for row in rows if row["score"] is None]
    if missing:
        print(f"{len(missing)} of {len(rows)} videos have no score", file=sys.stderr)
    return 1 if missing else 0


def score_files(reward: Reward, paths: Sequence[str], prompts: Sequence[str], fps: float | None) -> list[dict[str, Any]]:
    """One row per file, in order: video, prompt, score, parts, judgement, error, passport. Unreadable files cost only themselves."""
    from cac_align.rewards.reward import Score
    from cac_align.video import Video

    scores: dict[int, Score] = {}
    opened: dict[int, Video] = {}
    for position, path in enumerate(paths):
        try:
            opened[position] = Video.open(path, fps=fps)
        except ValueError as error:
            scores[position] = Score.missing(f"video: {error}", passport=reward.passport)
    if opened:
        found = reward([prompts[position] for position in opened], list(opened.values()))
        scores.update(zip(opened, found, strict=True))
    return [
        {"video": str(path), "prompt": prompt, **scores[position].to_json()}
        for position, (path, prompt) in enumerate(zip(paths, prompts, strict=True))
    ]


def video_prompts(videos: Sequence[str], prompt: str | None, file: Path | None) -> list[str]:
    """The prompt of every video, from one text or a file. Raises ``ValueError`` when a video has none."""
    if (prompt is None) == (file is None):
        raise ValueError("pass either --prompt TEXT or --prompts FILE")
    if prompt is not None:
        return [prompt] * len(videos)
    rows = read_prompts(file)
    if all(row.get("video") for row in rows):
        by_video = {row["video"]: row["prompt"] for row in rows}
        by_name = {Path(video).name: text for video, text in by_video.items()}
        unknown = [video for video in videos if video not in by_video and Path(video).name not in by_name]
        if unknown:
            raise ValueError(f"{file} has no prompt for {unknown[0]}")
        return [by_video.get(video, by_name.get(Path(video).name, "")) for video in videos]
    if len(rows) != len(videos):
        raise ValueError(f"{file} holds {len(rows)} prompts for {len(videos)} videos; expected one line per video")
    return [row["prompt"] for row in rows]


def read_prompts(file: Path) -> list[dict[str, str]]:
    """Rows with at least a ``prompt``: JSON Lines when every line is a JSON object, else one prompt per line. Blank lines are skipped.

    Raises ``ValueError`` naming the file and what is wrong.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as prompts: {error}") from error
    if not lines:
        raise ValueError(f"{file}: holds no prompts")
    if not all(line.startswith("{") for line in lines):
        return [{"prompt": line} for line in lines]
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({**row, "prompt": str(row["prompt"])})
        except (ValueError, KeyError) as error:
            raise ValueError(f"{file}:{number}: expected a JSON object with a prompt: {error}") from error
    return rows


def score_table(rows: Sequence[dict[str, Any]]) -> str:
    """The human view of ``score``: one line per video, then what was seen."""
    lines = [f"{'score':>7}  {'normalised parts':<34}  video"]
    for row in rows:
        parts = ", ".join(f"{name} {value:.3f}" for name, value in headline_parts(row["parts"]).items())
        score = "none" if row["score"] is None else f"{row['score']:.4f}"
        lines.append(f"{score:>7}  {parts:<34}  {row['video']}")
        lines.extend(f"{'':>9}{line}" for line in seen(row))
    return "\n".join(lines)


def headline_parts(parts: dict[str, float | None]) -> dict[str, float]:
    """The normalised component values of a combined score; all parts of a plain one."""
    normalised = {name.split("/", 1)[1]: value for name, value in parts.items() if name.startswith("normalised/")}
    chosen = normalised or {name: value for name, value in parts.items() if "/" not in name}
    return {name: value for name, value in list(chosen.items())[:4] if value is not None}


def seen(row: dict[str, Any]) -> list[str]:
    """What the judge saw, in plain words: one line per anomaly, or the error."""
    if row["error"]:
        return [f"no score: {row['error']}"]
    judgement = row["judgement"]
    if not judgement or judgement["status"] != "abnormal":
        return []
    lines = []
    for anomaly in judgement["anomalies"]:
        window = anomaly["window"]
        when = f"{window['start_s']:.2f}-{window['end_s']:.2f} s" if window else "time not given"
        lines.append(f"{anomaly['type']}, {when}: {anomaly['reason']}")
    return lines


# ---- best-of-n, demo, world -----------------------------------------------------------------------------------------


def run_best_of_n(options: argparse.Namespace) -> int:
    from cac_align.evaluation.selection_page import write_selection_page
    from cac_align.generation.best_of_n import best_of_n, read_candidates
    from cac_align.recipe import BestOfNRecipe, load_generator, load_reward, read_recipe

    recipe = read_recipe(BestOfNRecipe, options.recipe, options.overrides)
    prompts = [row["prompt"] for row in read_prompts(options.prompts)]
    n = recipe.n if options.n is None else options.n
    seed = recipe.seed if options.seed is None else options.seed
    reward = load_reward(recipe.reward)
    if options.candidates is not None:
        source: Any = read_candidates(options.candidates)
    else:
        if recipe.generator.model == "miniature":
            _check_world_prompts(prompts)
        source = load_generator(recipe.generator)
    selections = best_of_n(prompts, source, reward, n=n, seed=seed, out=options.out, progress=_bar)
    page = write_selection_page(selections, options.out / "report.html", title=f"Best of {n}")
    if options.json:
        print((options.out / "selection.jsonl").read_text(encoding="utf-8"), end="")
    else:
        print(selection_table(selections))
    undecided = sum(selection.chosen is None for selection in selections)
    print(f"report: {page}", file=sys.stderr)
    if undecided:
        print(f"{undecided} of {len(selections)} prompts are undecided: none of their candidates has a score", file=sys.stderr)
    return 1 if undecided else 0


def _check_world_prompts(prompts: Sequence[str]) -> None:
    """The miniature generator knows a small world: say at once when a prompt lies outside it."""
    from cac_align.miniature.world import parse_prompt

    for number, prompt in enumerate(prompts, 1):
        try:
            parse_prompt(prompt)
        except ValueError as error:
            raise ValueError(f"prompt {number} ({prompt[:60]!r}) is outside the miniature's world: {error}") from error


def _bar(total: int, about: str) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=about, file=sys.stderr, disable=None)


def selection_table(selections: Sequence[Any]) -> str:
    """One line per prompt: the chosen candidate, the scores, and why."""
    lines = []
    for selection in selections:
        scores = " ".join("  none" if not score.scored else f"{score.value:.4f}" for score in selection.scores)
        chosen = "undecided" if selection.chosen is None else f"candidate {selection.chosen}"
        lines.append(f"{chosen:<12} [{scores}]  {selection.prompt[:70]}\n{'':<13}{selection.reason}")
    return "\n".join(lines)


def run_demo(options: argparse.Namespace) -> int:
    from cac_align.miniature.demo import demo

    for line in demo(options.out, n=options.n, num_prompts=options.prompts, seed=options.seed, progress=_bar):
        print(line, flush=True)
    return 0


def run_world(options: argparse.Namespace) -> int:
    from cac_align.miniature.world import FULL, STUDIO, write_world

    records = write_world(options.n, options.seed, options.out, FULL if options.world == "full" else STUDIO)
    print(records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
