"""Best-of-N: the best is kept and the reason told, no score is invented, and a killed run goes on where it stopped."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from cac_align.cli import best_of_n as best_of_n_verb
from cac_align.cli.main import main
from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Anomaly, Judgement, Window
from cac_align.core.video import Video
from cac_align.generation.best_of_n import best_of_n
from cac_align.generation.candidates import Candidate, file_stem
from cac_align.generation.given_candidates import read_candidates
from cac_align.generation.selection import choose, select
from cac_align.rewards.combine import combine
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Score

CLEAN = Judgement("normal", log_p_normal=-0.1, log_p_abnormal=-3.0)
BROKEN = Judgement(
    "abnormal",
    (
        Anomaly("Human Distortion", Window(1.2, 1.45), "the left hand has\nsix fingers"),
        Anomaly("Motion Anomalies", None),
    ),
    log_p_normal=-3.0,
    log_p_abnormal=-0.1,
)


def grey(level, fps=16.0, name="video"):
    return Video.open(np.full((4, 16, 16, 3), level, np.uint8), fps=fps, name=name)


@dataclass
class Generator:
    """Grey videos, the level from a table by seed; None gives NaN pixels. Keeps what it was asked."""

    levels: dict
    asked: list = field(default_factory=list)

    def __call__(self, prompt, seed):
        self.asked.append((prompt, seed))
        if self.levels[seed] is None:
            return Video.open(np.full((4, 16, 16, 3), np.nan, np.float32), fps=16)
        return grey(self.levels[seed], name=f"{prompt} {seed}")


@dataclass
class Brightness:
    """Mean level / 100; below 20 it has no score. Dark ones look broken."""

    name: str = "brightness"
    asked: list = field(default_factory=list)
    bounds: tuple[float, float] = (0.0, 2.55)

    @property
    def provenance(self):
        return {"reward": self.name}

    def __call__(self, prompts, videos):
        scores = []
        for prompt, video in zip(prompts, videos, strict=True):
            level = round(float(video.frames([0]).pixels.mean()))
            self.asked.append((prompt, level))
            evidence = CLEAN if level >= 100 else BROKEN
            scores.append(
                Score.missing("too dark to see")
                if level < 20
                else Score(level / 100, {"level": float(level)}, evidence)
            )
        return scores


LEVELS = {0: 60, 1: 120, 2: 100, 3: None, 4: 10}


def test_the_highest_wins_and_the_reason_says_why():
    (chosen,) = best_of_n(["a hand"], Generator(LEVELS), Brightness())
    assert chosen.chosen == 1 and chosen.seeds == (0, 1, 2, 3, 4)
    assert [score.value for score in chosen.scores[:3]] == [0.6, 1.2, 1.0]
    assert [math.isnan(score.value) for score in chosen.scores[3:]] == [True, True]
    assert "80" not in chosen.reason.split("Without a score")[0]
    assert chosen.reason.startswith("Candidate 1 (1.2) beats candidate 2 by 0.2: level 120 against 100.")
    assert (
        "Anomalies seen in the others: candidate 0: Human Distortion at 1.20–1.45 s (the left hand has six fingers) and 1 more."
        in chosen.reason
    )
    assert "candidate 3: the generator gave no usable video: pixels hold" in chosen.reason
    assert "candidate 4: too dark to see" in chosen.reason
    assert chosen.video.frames([0]).pixels[0, 0, 0, 0] == 120


def test_prompts_share_seeds_unless_they_are_to_be_distinct(tmp_path):
    def generate(prompt, seed):
        return Generator({seed: 60})(prompt, seed)

    prompts = ["p", "q", "p", "r"]
    shared = best_of_n(prompts, generate, Brightness(), n=2, seed=7)
    assert [chosen.seeds for chosen in shared] == [(7, 8)] * 4
    own = best_of_n(prompts, generate, Brightness(), n=2, seed=7, distinct_seeds=True, out=tmp_path)
    assert [chosen.seeds for chosen in own] == [(7, 8), (9, 10), (7, 8), (11, 12)]
    assert (tmp_path / "videos" / f"{file_stem('r')}-12.mp4").is_file()
    second = best_of_n(prompts, generate, Brightness(), n=2, seed=7, distinct_seeds=True, share=(1, 2))
    assert [chosen.seeds for chosen in second] == [(9, 10)], "a process of several takes the seeds that one would"


def test_a_missing_score_loses_to_any_score():
    (chosen,) = best_of_n(["p"], Generator({0: 10, 1: 21}), Brightness(), n=2)
    assert chosen.chosen == 1 and chosen.reason.startswith("Candidate 1 (0.21) is the only one with a score.")
    assert "The chosen one is not clean either: Human Distortion" in chosen.reason


def test_negative_scores_beat_missing_ones():
    class Negative(Brightness):
        def __call__(self, prompts, videos):
            return [Score(-5.0), Score.missing("lost")]

    (chosen,) = best_of_n(["p"], Generator({0: 50, 1: 60}), Negative(), n=2)
    assert chosen.chosen == 0


def test_all_missing_is_undecided_never_picked(tmp_path):
    selections = best_of_n(["p", "q"], Generator({0: 10, 1: None}), Brightness(), n=2, out=tmp_path)
    assert [chosen.chosen for chosen in selections] == [None, None]
    assert selections[0].video is None
    assert selections[0].reason.startswith(
        "Undecided: none of the 2 candidates has a score (candidate 0: too dark to see; "
    )
    rows = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert [row["chosen"] for row in rows] == [None, None] and rows[0]["scores"] == [None, None]
    assert rows[0]["errors"][0] == "too dark to see"


def test_ties_go_to_the_lowest_index_and_say_so():
    (chosen,) = best_of_n(["p"], Generator({0: 60, 1: 120, 2: 120, 3: 120}), Brightness(), n=4)
    assert chosen.chosen == 1
    assert chosen.reason.startswith("Candidate 1 is tied with candidates 2, 3 at 1.2; the lowest index wins.")
    assert "beats candidate 0 by 0.6" in chosen.reason


def test_a_lead_of_less_than_a_thousandth_is_a_tie_and_no_win():
    scores = [Score(0.62221), Score(0.62224), Score(0.61)]
    candidates = [Candidate(name, None, None) for name in "abc"]
    chosen = choose("p", candidates, scores, ())
    assert chosen.chosen == 1  # the highest one all the same
    first, second = chosen.reason.split(". ")[:2]
    assert "tied with candidate 0" in first and "2.9e-05" in first.replace("3e-05", "2.9e-05")
    assert "beats candidate 2" in second and "beats candidate 0" not in chosen.reason


def test_no_window_is_told_shorter_than_a_frame():
    anomaly = Anomaly("Motion Anomalies", Window(0.75, 0.75), "it vanishes")
    judgement = Judgement("abnormal", (anomaly,), (), -5.0, -0.01)
    clip = Video.open(np.zeros((17, 16, 16, 3), np.uint8), fps=16, layout="THWC")
    chosen = choose("p", [Candidate("a", clip, None)], [Score(0.1, evidence=judgement)], ())
    assert "0.75–0.81 s" in chosen.reason
    assert Window(0.5, 1.0).lasting(1 / 16) == Window(0.5, 1.0)


def test_rounding_is_a_tie():
    class Almost(Brightness):
        def __call__(self, prompts, videos):
            return [Score(0.3), Score(0.1 + 0.2)]

    assert select("p", [grey(1), grey(2)], Almost()).chosen == 0


def test_one_candidate():
    (chosen,) = best_of_n(["p"], Generator({0: 60}), Brightness(), n=1)
    assert chosen.chosen == 0 and "the only one" in chosen.reason


def test_the_prompts_group_is_normalised_together():
    reward = combine({"brightness": Brightness()}, normalise="group")
    selections = best_of_n(["p", "q"], Generator({0: 60, 1: 120}), reward, n=2)
    assert [[score.value for score in chosen.scores] for chosen in selections] == [[-1, 1], [-1, 1]]
    assert "brightness 1.2 against 0.6" in selections[0].reason  # raw values, not z-scores


def test_a_prompt_given_twice_is_decided_once():
    generator = Generator(LEVELS)
    selections = best_of_n(["p", "q", "p"], generator, Brightness(), n=2)
    assert [chosen.prompt for chosen in selections] == ["p", "q", "p"] and selections[0] is selections[2]
    assert len(generator.asked) == 4


def test_seeds_start_where_asked():
    generator = Generator({7: 30, 8: 40})
    assert best_of_n(["p"], generator, Brightness(), n=2, seed=7)[0].seeds == (7, 8)
    assert generator.asked == [("p", 7), ("p", 8)]


@pytest.mark.parametrize(
    ("prompts", "n", "message"),
    [([], 5, "received none"), (["a", " \n"], 5, "prompt 1 is blank"), (["a"], 0, "at least 1")],
)
def test_wrong_calls_are_refused(prompts, n, message):
    with pytest.raises(ValueError, match=message):
        best_of_n(prompts, Generator(LEVELS), Brightness(), n=n)


def test_progress_is_a_tqdm_like_bar():
    seen = []

    class Bar:
        def update(self, n):
            seen.append(n)

        def close(self):
            seen.append("closed")

    best_of_n(
        ["p", "q"],
        Generator(LEVELS),
        Brightness(),
        n=3,
        progress=lambda total, about: seen.append((total, about)) or Bar(),
    )
    assert seen == [(6, "candidates"), 3, 3, "closed"]


# ---- on disk ------------------------------------------------------------------------------------------------------


def test_out_holds_videos_ledger_and_selection(tmp_path):
    selections = best_of_n(["a hand", "a ball"], Generator(LEVELS), Brightness(), n=3, out=tmp_path)
    names = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert names == sorted(f"{file_stem(prompt)}-{seed}.mp4" for prompt in ("a hand", "a ball") for seed in range(3))
    rows = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["a hand", "a ball"]
    assert rows[0] == selections[0].to_json() and rows[0]["chosen"] == 1
    assert Path(rows[0]["candidates"][1]).is_file()
    assert [row["kind"] for row in Ledger(tmp_path / "ledger.jsonl").rows()] == ["score"] * 6
    assert selections[0].video.path == tmp_path / "videos" / f"{file_stem('a hand')}-1.mp4"


def test_another_prompt_file_into_the_same_folder_keeps_the_former_prompts(tmp_path, monkeypatch, capsys):
    best_of_n(["a hand", "a ball"], Generator(LEVELS), Brightness(), n=3, out=tmp_path)
    told = best_of_n(["a dog", "a ball"], Generator(LEVELS), Brightness(), n=3, out=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["a dog", "a ball", "a hand"]
    (tmp_path / "prompts.txt").write_text("a dog\na ball\na dog\n")
    monkeypatch.setattr(best_of_n_verb, "_selections", lambda *_: [*told, told[0]])
    recipe = tmp_path / "own.yaml"  # a generator of one's own takes any prompt
    recipe.write_text(f"generator: {{model: '{__name__}:Generator'}}\n")
    given = ["--prompts", str(tmp_path / "prompts.txt"), "--recipe", str(recipe), "--out", str(tmp_path), "--json"]
    assert main(["best-of-n", *given]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows[:2]  # of this call only


def test_the_same_call_again_does_nothing_again(tmp_path):
    first = best_of_n(["p", "q"], Generator(LEVELS), Brightness(), n=3, out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    generator, reward = Generator(LEVELS), Brightness()
    again = best_of_n(["p", "q"], generator, reward, n=3, out=tmp_path)
    assert generator.asked == [] and reward.asked == []
    assert [chosen.to_json() for chosen in again] == [chosen.to_json() for chosen in first]
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # more candidates: only the new ones are made
    best_of_n(["p", "q"], generator, reward, n=5, out=tmp_path)
    assert generator.asked == [("p", 3), ("p", 4), ("q", 3), ("q", 4)]


def test_an_interrupted_run_resumes(tmp_path):
    class Known(Generator):
        provenance = {"weights_sha256": "ab"}  # noqa: RUF012

    class Interrupted(Known):
        def __call__(self, prompt, seed):
            if len(self.asked) == 4:
                raise KeyboardInterrupt
            return super().__call__(prompt, seed)

    with pytest.raises(KeyboardInterrupt):
        best_of_n(["p", "q"], Interrupted(LEVELS), Brightness(), n=3, out=tmp_path)
    assert len((tmp_path / "selection.jsonl").read_text().splitlines()) == 1  # the first prompt's is there already
    with open(tmp_path / "selection.jsonl", "a") as file:
        file.write('{"prompt": "to')
    generator, reward = Known(LEVELS), Brightness()
    resumed = best_of_n(["p", "q"], generator, reward, n=3, out=tmp_path)
    assert generator.asked == [("q", 1), ("q", 2)] and len(reward.asked) == 3
    whole = best_of_n(["p", "q"], Generator(LEVELS), Brightness(), n=3, out=tmp_path / "whole")
    assert [[score.to_json() for score in one.scores] for one in resumed] == [
        [score.to_json() for score in one.scores] for one in whole
    ]
    assert len((tmp_path / "selection.jsonl").read_text().splitlines()) == 2


KILLED = """
import sys, time
from pathlib import Path
from tests.generation.test_best_of_n import Brightness, Generator, best_of_n
class Slow(Generator):
    def __call__(self, prompt, seed):
        video = super().__call__(prompt, seed)
        with open(sys.argv[2], "a") as file:
            file.write(f"{prompt} {seed}\\n")
        return video
best_of_n([f"prompt {n}" for n in range(6)], Slow({n: 30 + 9 * n for n in range(4)}), Brightness(), n=4, out=Path(sys.argv[1]))
print("done")
"""


@pytest.mark.parametrize("after", [3, 9])
def test_a_killed_run_resumes_by_the_same_command(tmp_path, after):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(tmp_path / "out"), str(tmp_path / "generated.txt")]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE)
    made = tmp_path / "generated.txt"
    deadline = time.monotonic() + 60
    while not (made.exists() and len(made.read_text().splitlines()) >= after) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert b"done" not in process.stdout.read()
    before = made.read_text().splitlines()
    assert subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout == "done\n"
    made_again = set(before) & set(made.read_text().splitlines()[len(before) :])
    assert len(made_again) <= 1  # at most the one that was being written when the kill came
    assert len(set(made.read_text().splitlines())) == 24
    rows = [json.loads(line) for line in (tmp_path / "out" / "selection.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"prompt {n}" for n in range(6)]
    assert all(row["chosen"] == 3 for row in rows)
    keys = [row["key"] for row in Ledger(tmp_path / "out" / "ledger.jsonl").rows()]
    assert len(keys) == len(set(keys)) == 24  # nothing was scored twice


def test_videos_of_another_generator_are_not_taken_for_this_ones(tmp_path):
    class Known(Generator):
        steps = "50"

        @property
        def provenance(self):
            return {"weights_sha256": "ab", "steps": self.steps}

    class Hasty(Known):
        steps = "4"

    for _ in range(2):
        best_of_n(["p"], Known(LEVELS), Brightness(), n=1, out=tmp_path)
    with pytest.raises(
        ValueError, match=r"another generator \(steps differ; steps was '50', now '4'\); write to another folder"
    ):
        best_of_n(["p"], Hasty(LEVELS), Brightness(), n=1, out=tmp_path)


def test_choices_of_another_reward_are_not_mixed_with_this_ones(tmp_path):
    class Other(Brightness):
        provenance = {"reward": "other", "vlm/served": "a", "vlm/dtype": "float32"}  # noqa: RUF012

    class Moved(Other):  # the same judge on other hardware, its server restarted
        provenance = {"reward": "other", "vlm/served": "unreachable", "vlm/dtype": "bfloat16"}  # noqa: RUF012

    best_of_n(["p"], Generator(LEVELS), Brightness(), n=2, out=tmp_path)
    before = (tmp_path / "selection.jsonl").read_bytes()
    with pytest.raises(
        ValueError, match=r"its choices come from another reward \(reward differ.*--candidates .*videos takes these"
    ):
        best_of_n(["p"], Generator(LEVELS), Other(), n=2, out=tmp_path)
    assert (tmp_path / "selection.jsonl").read_bytes() == before
    given = read_candidates(tmp_path / "videos", ["p"])
    for judge in (Other(), Moved()):
        assert len(best_of_n(["p"], given, judge, n=2, out=tmp_path / "again")[0].scores) == 2


def test_a_folder_that_trains_is_no_place_for_it(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run that trains"):
        best_of_n(["p"], Generator(LEVELS), Brightness(), n=1, out=tmp_path)


def test_a_generator_without_a_provenance_goes_by_its_name(tmp_path):
    class Known(Generator):
        provenance = {"weights_sha256": "ab"}  # noqa: RUF012

    for _ in range(2):
        best_of_n(["p"], Generator(LEVELS), Brightness(), n=1, out=tmp_path / "a")
    said = json.loads((tmp_path / "a" / "generator.json").read_text())
    assert said == {"generator": f"{Generator.__module__}:Generator"}
    with pytest.raises(ValueError, match="another generator"):
        best_of_n(["p"], Known(LEVELS), Brightness(), n=1, out=tmp_path / "a")
    best_of_n(["p"], Known(LEVELS), Brightness(), n=1, out=tmp_path / "b")
    with pytest.raises(ValueError, match="another generator"):
        best_of_n(["p"], Generator(LEVELS), Brightness(), n=1, out=tmp_path / "b")
    (tmp_path / "b" / "generator.json").unlink()
    with pytest.raises(
        ValueError, match=r"who made .*mp4 is not known \(generator.json is missing\); write to another folder"
    ):
        best_of_n(["p"], Known(LEVELS), Brightness(), n=1, out=tmp_path / "b")


def test_hostile_prompts_become_safe_names(tmp_path):
    prompts = [
        "{x} %s",
        "../../etc/passwd",
        "<script>alert(1)</script>",
        "a" * 50_000,
        "手が六本指",
        "/",
        "a\x00b\nc",
        "NUL",
    ]
    slugs = [file_stem(prompt) for prompt in [*prompts, "\udc80"]]
    assert len(set(slugs)) == len(prompts) + 1
    assert all(len(each) <= 51 and set(each) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for each in slugs)
    assert file_stem("a" * 50_000) != file_stem("a" * 50_001) and file_stem("A b") != file_stem("a b")
    selections = best_of_n(prompts, Generator(LEVELS), Brightness(), n=2, out=tmp_path)
    assert [chosen.chosen for chosen in selections] == [1] * len(prompts)
    assert len(list((tmp_path / "videos").iterdir())) == 2 * len(prompts)
    rows = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == prompts
    resumed = Generator(LEVELS)
    best_of_n(prompts, resumed, Brightness(), n=2, out=tmp_path)
    assert resumed.asked == []


# ---- given candidates ---------------------------------------------------------------------------------------------


def test_a_folder_of_candidates_by_name(tmp_path):
    for name in (
        f"{file_stem('p')}-0",
        f"{file_stem('p')}-10",
        f"{file_stem('p')}-2",
        f"{file_stem('q')}-0",
        "something else",
    ):
        write_mp4(tmp_path / f"{name}.mp4", np.full((4, 16, 16, 3), 50 + 10 * name.endswith("-2"), np.uint8), 16)
    (tmp_path / f"{file_stem('q')}-1.mp4").write_bytes(b"not a video")
    found = read_candidates(tmp_path, ["p", "q", "r"])
    assert [path.name for path in found["p"]] == [f"{file_stem('p')}-{n}.mp4" for n in (0, 2, 10)] and found["r"] == []
    p, q, r = best_of_n(["p", "q", "r"], tmp_path, Brightness())
    assert p.chosen == 1 and p.seeds == ()
    assert q.chosen == 0 and not q.scores[1].scored and "Without a score: candidate 1" in q.reason
    assert r.chosen is None and r.reason == "Undecided: there is no candidate for this prompt."


def test_candidates_from_a_listing(tmp_path):
    (tmp_path / "clips").mkdir()
    rows = []
    for number, prompt in enumerate(["a {x}\u2028", "b", "a {x}\u2028"]):
        write_mp4(tmp_path / "clips" / f"{number}.mp4", np.full((4, 16, 16, 3), 40 + 30 * number, np.uint8), 16)
        rows.append(json.dumps({"prompt": prompt, "video": f"clips/{number}.mp4"}, ensure_ascii=False))
    listing = tmp_path / "candidates.jsonl"
    listing.write_text("\n".join(rows) + "\n\n")
    assert list(read_candidates(listing)) == ["a {x}\u2028", "b"]
    for source in (listing, tmp_path, read_candidates(listing), read_candidates(tmp_path)):
        (chosen,) = best_of_n(["a {x}\u2028"], source, Brightness())
        assert chosen.chosen == 1 and chosen.candidates[1].endswith("clips/2.mp4")


def test_candidates_that_cannot_be_found_say_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        read_candidates(tmp_path / "absent", ["p"])
    with pytest.raises(ValueError, match=f"videos named {file_stem('p')}-0.mp4"):
        read_candidates(tmp_path, ["p"])
    with pytest.raises(ValueError, match=r"expected a table with the columns prompt and video"):
        read_candidates(tmp_path)
    (tmp_path / "candidates.jsonl").write_text('{"prompt": "p"}\n')
    with pytest.raises(ValueError, match=r"line 1: expected .*video"):
        read_candidates(tmp_path, ["p"])


def test_videos_in_memory_can_be_given():
    (chosen,) = best_of_n(["p"], {"p": [grey(30, name="dim"), grey(200, name="bright")]}, Brightness())
    assert chosen.candidates == ("dim", "bright") and chosen.chosen == 1
    assert chosen.video.name == "bright"


def test_a_prompt_is_judged_while_the_next_one_is_generated():
    """The judge of the first prompt ends only once a video of the second has been asked for; the generator never is two ahead."""
    second_begun, judged = threading.Event(), []

    def generate(prompt, seed):
        if prompt == "second":
            second_begun.set()
        if prompt == "third":
            assert judged[:1] == ["first"], "the first prompt is decided before the third is generated"
        return grey(100 + seed)

    class Waiting(Brightness):
        def __call__(self, prompts, videos):
            assert second_begun.wait(60), "the second prompt is not generated while the first is judged"
            judged.append(prompts[0])
            return super().__call__(prompts, videos)

    prompts = ["first", "second", "third"]
    found = best_of_n(prompts, generate, Waiting(), n=2)
    assert judged == prompts and [one.prompt for one in found] == prompts and [one.chosen for one in found] == [1, 1, 1]


def test_without_overlap_a_prompt_is_judged_before_the_next_one_is_generated():
    events = []

    def generate(prompt, seed):
        events.append(f"generate {prompt}")
        return grey(100 + seed)

    class Noted(Brightness):
        def __call__(self, prompts, videos):
            events.append(f"judge {prompts[0]}")
            return super().__call__(prompts, videos)

    alone = best_of_n(["a", "b"], generate, Noted(), n=1, overlap=False)
    assert events == ["generate a", "judge a", "generate b", "judge b"]
    together = best_of_n(["a", "b"], generate, Noted(), n=1)
    assert [one.to_json() for one in together] == [one.to_json() for one in alone]
