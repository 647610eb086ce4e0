"""Our tournaments against the public practice of pairwise rewards, on scripted judges whose faults are known.

python -m research.experiments.pairwise_practice [--groups 300]: prints the tables of docs/pairwise.md.

Public practice (Pref-GRPO and its forks): every pair once, the video with the smaller index shown first, a forced winner,
a failed comparison counts half, and the win rates are normalised within the group.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from cac_align.core.video import Video
from cac_align.rewards.pairwise.comparison import Comparison
from cac_align.rewards.pairwise.tournament import Tournament


@dataclass
class ScriptedJudge:
    """Prefers by a logistic law of quality, drawn towards the video that is shown first.

    qualities: by video name. bias: added to the log-odds of the first. soft: it states its probability, as a server with
    log-probabilities does; else it names a winner, drawn from it. failing: share of questions without an answer.
    """

    qualities: dict[str, float]
    rng: np.random.Generator
    bias: float = 0.0
    soft: bool = False
    failing: float = 0.0
    asked: int = 0
    name: str = "scripted"
    provenance: dict[str, str] = field(default_factory=lambda: {"reward": "scripted"})

    def prefer(self, first: str, second: str) -> float | None:
        """P(the first is better), 0 or 1 where it only names a winner, None where it fails."""
        self.asked += 1
        if self.rng.random() < self.failing:
            return None
        p = float(1 / (1 + np.exp(-(self.qualities[first] - self.qualities[second] + self.bias))))
        return p if self.soft else float(self.rng.random() < p)

    def compare(self, prompts: Sequence[str], firsts: Sequence[Video], seconds: Sequence[Video]) -> list[Comparison]:
        answers = [self.prefer(a.name, b.name) for a, b in zip(firsts, seconds, strict=True)]
        return [Comparison.missing("no answer") if p is None else Comparison(p) for p in answers]


def public_practice(judge: ScriptedJudge, videos: Sequence[Video]) -> np.ndarray:
    """Win rates of one order with forced winners; a failure is half a win for both."""
    wins = np.zeros(len(videos))
    for i, j in combinations(range(len(videos)), 2):
        p = judge.prefer(videos[i].name, videos[j].name)
        won = 0.5 if p is None else float(p > 0.5)
        wins[i] += won
        wins[j] += 1 - won
    return wins / (len(videos) - 1)


def ours(judge: ScriptedJudge, videos: Sequence[Video], schedule: str, anchors: int) -> np.ndarray:
    """The values of a tournament, NaN where there is no score."""
    tournament = Tournament(judge, schedule=schedule, anchors=anchors)  # pyright: ignore[reportArgumentType]
    return np.array(
        [score.value if score.scored else np.nan for score in tournament(["a prompt"] * len(videos), list(videos))]
    )


def advantages(values: np.ndarray) -> np.ndarray:
    """Values normalised within the group; zero where they do not differ."""
    spread = values.std()
    return (values - values.mean()) / spread if spread > 1e-6 else np.zeros_like(values)


def kendall(values: np.ndarray, qualities: np.ndarray) -> float:
    """Kendall's tau-a of the scored items: a tie counts 0."""
    pairs = list(combinations(np.flatnonzero(~np.isnan(values)), 2))
    return float(np.mean([np.sign(values[i] - values[j]) * np.sign(qualities[i] - qualities[j]) for i, j in pairs]))


def clips(count: int) -> list[Video]:
    """Different tiny videos in random order of their hashes; their names are their indices."""
    pixels = np.random.default_rng(5).integers(0, 256, (count, 2, 8, 8, 3)).astype(np.uint8)
    return [Video.open(one, fps=8, layout="THWC", name=str(index)) for index, one in enumerate(pixels)]


def interval(values: Sequence[float]) -> str:
    """Mean and 95 % interval (normal) over groups."""
    mean, half = np.mean(values), 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean:.2f} [{mean - half:.2f}, {mean + half:.2f}]"


METHODS = (("public practice", "", 1), ("round_robin", "round_robin", 1), ("anchor, 2", "anchor", 2), ("anchor, 4", "anchor", 4),
           ("seeded", "seeded", 1))  # fmt: skip


def equal_videos(groups: int) -> str:
    """Six equally good videos and a judge that prefers the first: what advantages come out?"""
    lines = ["| judge | method | groups with a ranking | mean advantage of video 1 | of video 6 | size of an advantage (rms) |", "|---|---|---|---|---|---|"]  # fmt: skip
    videos = clips(6)
    for label, bias, soft in (("60 % first", 0.405, False), ("80 % first", 1.386, False), ("80 % first, soft p", 1.386, True)):  # fmt: skip
        for method, schedule, anchors in METHODS:
            rng = np.random.default_rng(0)
            found = []
            for _ in range(groups):
                judge = ScriptedJudge(dict.fromkeys((video.name for video in videos), 0.0), rng, bias, soft)
                values = ours(judge, videos, schedule, anchors) if schedule else public_practice(judge, videos)
                found.append(advantages(values))
            table = np.array(found)
            lines.append(
                f"| {label} | {method} | {100 * np.mean(table.any(1)):.0f} % | {interval(table[:, 0].tolist())} | "
                f"{interval(table[:, -1].tolist())} | {np.sqrt((table**2).mean()):.2f} |"
            )
    return "\n".join(lines)


def recovered_order(groups: int) -> str:
    """Sixteen videos of different quality: how much of their order comes back, and for how many questions?"""
    lines = ["| judge | method | Kendall's tau | questions | groups without a score |", "|---|---|---|---|---|"]
    videos = clips(16)
    cases = (
        ("winner only", 0.0, False, 0.0),
        ("winner only, 80 % first", 1.386, False, 0.0),
        ("soft p, 80 % first", 1.386, True, 0.0),
        ("winner only, a fifth of the answers fail", 0.0, False, 0.2),
    )
    for label, bias, soft, failing in cases:
        for method, schedule, anchors in METHODS:
            rng, taus, asked, lost = np.random.default_rng(0), list[float](), 0, 0
            for _ in range(groups):
                qualities = rng.normal(0, 1.5, len(videos))
                judge = ScriptedJudge({v.name: float(q) for v, q in zip(videos, qualities, strict=True)}, rng, bias, soft, failing)  # fmt: skip
                values = ours(judge, videos, schedule, anchors) if schedule else public_practice(judge, videos)
                asked += judge.asked
                if np.isnan(values).all():
                    lost += 1
                else:
                    taus.append(kendall(values, qualities))
            lines.append(f"| {label} | {method} | {interval(taus)} | {asked / groups:.0f} | {lost} of {groups} |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=300)
    groups = parser.parse_args().groups
    print(f"{groups} groups per line, seed 0\n\n{equal_videos(groups)}\n\n{recovered_order(groups)}")


if __name__ == "__main__":
    main()
