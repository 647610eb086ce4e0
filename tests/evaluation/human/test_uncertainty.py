"""A queue by the judge's uncertainty: who comes first is worked out by hand, from files and from a real judge."""

import json

import pytest
from fastapi.testclient import TestClient

from cac_align.cac.two_turn import TwoTurn
from cac_align.cli.main import main
from cac_align.core.video import Video
from cac_align.evaluation.human.app import create_rating_app
from cac_align.evaluation.human.uncertainty import judged_log_odds, source_clips, stored_log_odds
from cac_align.rewards.ledger import Ledger
from cac_align.rewards.reward import Score
from tests.evaluation.human.test_app import clip

ODDS = {"a": 4.0, "b": -0.5, "c": None, "d": 0.25, "e": -9.0}
EXPECTED = ["c", "d", "b", "a", "e"]  # without a score, then .25, .5, 4, 9


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(ODDS):
        clip(tmp_path / "clips" / f"{name}.mp4", 5, level=20 * number)
    return tmp_path / "clips"


def rows(folder, named):
    made = []
    for name, odds in ODDS.items():
        score = Score.missing("no answer") if odds is None else Score(0.5, {"log_odds": odds, "mass": 1.0})
        made.append({"video": named(name), "prompt": "p", **score.to_json()})
    return made


def order(folder, database, log_odds):
    app = create_rating_app(folder, database=database, rater="ann", log_odds=log_odds)
    names = {task.token: task.members[0].clip.path.stem for task in app.state.tasks}
    with TestClient(app, base_url="http://127.0.0.1") as client:
        ask = {number: {"rater": "ann", "number": number} for number in range(1, len(names) + 1)}
        return [names[client.get("/api/task", params=query).json()["task"]] for query in ask.values()]


def test_the_page_shows_the_least_certain_first(folder, tmp_path):
    file = tmp_path / "scores.jsonl"
    made = rows(folder, lambda name: str(folder / f"{name}.mp4"))
    # An earlier score of a clip, and another reward's: the last CaC score counts.
    first = {**made[0], "parts": {"log_odds": 0.01}}
    other = {**made[4], "parts": {"unified": 0.4}}
    file.write_text("".join(json.dumps(row) + "\n" for row in [first, *made, other]))
    found = stored_log_odds(file, source_clips(folder))
    assert {path.stem: value for path, value in found.items()} == {k: v for k, v in ODDS.items() if v is not None}
    assert order(folder, tmp_path / "queue.sqlite", found) == EXPECTED
    assert order(folder, tmp_path / "free.sqlite", None) != EXPECTED  # seed 0 of this rater


def test_a_ledger_finds_clips_by_their_content(folder, tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for number, (name, odds) in enumerate(ODDS.items()):
        video = Video.open(folder / f"{name}.mp4", name="called otherwise")
        score = Score.missing("no answer") if odds is None else Score(0.5, {"log_odds": odds})
        ledger.record([(f"{number:064x}", "missing" if odds is None else "score", "p", video, "cac", score)])
    nan = {"video": str(folder / f"{next(iter(ODDS))}.mp4"), "score": 0.5, "parts": {"log_odds": float("nan")}}
    with open(ledger.path, "a") as lines:
        lines.write(json.dumps(nan) + "\n")
    found = stored_log_odds(ledger.path, source_clips(folder))
    assert {path.stem: value for path, value in found.items()} == {k: v for k, v in ODDS.items() if v is not None}


def test_a_pair_is_as_uncertain_as_its_less_certain_clip(tmp_path):
    odds = {}
    for group, values in (("before", (3.0, 6.0, 8.0)), ("after", (5.0, -0.5, 7.0))):
        for number, value in enumerate(values):
            path = tmp_path / group / f"{number}.mp4"
            clip(path, 5, level=40 * number + 10 * (group == "after"))
            odds[path.resolve()] = value
    folders = [tmp_path / "before", tmp_path / "after"]
    assert order(folders, tmp_path / "pairs.sqlite", odds) == ["1", "0", "2"]  # .5, 3, 7


def test_a_file_without_a_score_of_these_clips_is_refused(folder, tmp_path, capsys):
    file = tmp_path / "scores.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(folder, lambda name: f"elsewhere-{name}.mp4")))
    assert main(["annotate", str(folder), "--queue", str(file)]) == 2
    assert "none of its rows is a CaC's score of one of these 5 clips" in capsys.readouterr().err
    assert main(["annotate", str(folder), "--queue", str(tmp_path / "nothing.jsonl")]) == 2
    assert "found no file" in capsys.readouterr().err
    assert main(["annotate", str(folder), "--set", "components.cac.tta=[as_is]"]) == 2
    assert "name the recipe" in capsys.readouterr().err


def test_a_judge_scores_the_queue_and_the_ledger_keeps_it(tmp_path):
    from cac_align.miniature.world.settings import WORLDS
    from cac_align.miniature.world.world import write_world
    from cac_align.rewards.build import load_cac

    records = write_world(2, 2_000_000, tmp_path / "world", WORLDS["playground"])
    listing = [json.loads(line) for line in records.read_text().splitlines()]
    (records.parent / "videos" / "prompts.jsonl").write_text(
        "".join(
            json.dumps({"video": row["video"].rpartition("/")[2], "prompt": row["prompt"]}) + "\n" for row in listing
        )
    )
    clips = source_clips(records.parent / "videos")
    judge, ledger, seen = load_cac(), Ledger(tmp_path / "ledger.jsonl"), []
    assert isinstance(judge.settings, TwoTurn)
    found = judged_log_odds(judge, clips, ledger, lambda done, total: seen.append((done, total)))
    direct = judge([clip.prompt or "" for clip in clips], [clip.video for clip in clips])
    assert found == {
        clip.path.resolve(): pytest.approx(score.parts["log_odds"], abs=1e-3)
        for clip, score in zip(clips, direct, strict=True)
    }
    assert seen == [(2, 2)] and len(found) == 2
    assert stored_log_odds(ledger.path, clips) == pytest.approx(found)
