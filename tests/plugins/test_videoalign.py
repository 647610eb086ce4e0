"""The VideoAlign-shaped class: same constructor, same call, same keys; our scores under them."""

import inspect
import sys

import pytest

from cac_align.core.encoding import write_mp4
from cac_align.plugins import videoalign
from cac_align.plugins.common import host
from cac_align.plugins.common.missing_scores import MissingScoreError
from cac_align.plugins.videoalign import RunStopped, VideoVLMRewardInference
from tests.support.hosting import clip


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(host, "_rewards", {})
    monkeypatch.setattr(host, "_host_rewards", {})


@pytest.fixture
def paths(tmp_path):
    for level in (240, 90):
        write_mp4(tmp_path / f"{level}.mp4", clip(level, 17, 64, 64), fps=8)  # DanceGRPO tags 16 fps videos with 8
    return [str(tmp_path / "240.mp4"), str(tmp_path / "90.mp4")]


def test_the_signature_is_videoaligns():
    names = list(inspect.signature(VideoVLMRewardInference.__init__).parameters)
    assert names[:5] == ["self", "load_from_pretrained", "load_from_pretrained_step", "device", "dtype"]
    names = list(inspect.signature(VideoVLMRewardInference.reward).parameters)
    assert names == ["self", "video_paths", "prompts", "fps", "num_frames", "max_pixels", "use_norm"]


def test_every_key_holds_the_whole_reward(paths):
    inferencer = VideoVLMRewardInference("tests.support.hosting:scripted", device="cuda:0", dtype="bfloat16")
    bright, dark = inferencer.reward(paths, ["a", "b"], use_norm=True)
    assert bright == pytest.approx(dict.fromkeys(("VQ", "MQ", "TA", "Overall"), 0.825))  # (0.75 + 0.9) / 2
    assert dark == pytest.approx(dict.fromkeys(("VQ", "MQ", "TA", "Overall"), 0.425))
    assert inferencer.reward(paths[:1], ["a"], use_norm=False)[0]["MQ"] == pytest.approx(0.825)


def test_the_checkpoint_folder_that_the_script_passes_is_not_read(paths, monkeypatch):
    """DanceGRPO's next line is VideoVLMRewardInference("./videoalign_ckpt", device="cuda:0", dtype=torch.bfloat16)."""
    with pytest.raises(ValueError, match="state the option reward"):
        VideoVLMRewardInference("./videoalign_ckpt", device="cuda:0")
    monkeypatch.setenv("CAC_ALIGN_REWARD", "tests.support.hosting:scripted")
    monkeypatch.setenv("CAC_ALIGN_FPS", "8")
    inferencer = VideoVLMRewardInference("./videoalign_ckpt", device="cuda:0")
    assert inferencer.host_reward.options.fps == 8.0
    assert inferencer.reward(paths[1:], ["a"])[0]["VQ"] == pytest.approx(0.425)
    assert VideoVLMRewardInference("http://h:1").host_reward.options.reward == "http://h:1"
    assert VideoVLMRewardInference("/ckpt:2", reward="http://h:1").host_reward.options.reward == "http://h:1"


def test_the_files_own_rate_is_not_believed(paths):
    inferencer = VideoVLMRewardInference("tests.support.hosting:scripted")
    scan = inferencer.host_reward.scores(["a"], paths[:1])[0].evidence.turns[0]
    assert scan.frames == (0, 4, 8, 12, 16)  # 4 fps of 16; at the 8 of the file it would be every second frame


def test_failures_are_errors(paths):
    with pytest.raises(RunStopped, match="policy raise") as stopped:
        VideoVLMRewardInference("tests.support.hosting:scripted").reward(["/no/such.mp4"], ["a"])
    assert isinstance(stopped.value.__cause__, MissingScoreError)
    with pytest.raises(RunStopped, match="one prompt per video"):
        VideoVLMRewardInference("tests.support.hosting:scripted").reward(paths, ["a"])
    with pytest.raises(ValueError, match="unknown reward option"):
        VideoVLMRewardInference("tests.support.hosting:scripted", legder="x")


def test_the_launcher_runs_an_untouched_script(paths, tmp_path, monkeypatch, capsys):
    """The lines of DanceGRPO's scripts, which import the class when they start."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        "from fastvideo.models.videoalign.inference import VideoVLMRewardInference\n"
        "inferencer = VideoVLMRewardInference('./videoalign_ckpt', device='cuda:0', dtype=None)\n"
        f"print(sys.argv[1:], inferencer.reward([{paths[1]!r}], ['a'], use_norm=True)[0]['MQ'])\n"
    )
    monkeypatch.setenv("CAC_ALIGN_REWARD", "tests.support.hosting:scripted")
    monkeypatch.setattr(sys, "argv", ["x"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, videoalign.REPLACED_MODULE, None)
    videoalign.main([str(script), "--use_videoalign"])
    assert capsys.readouterr().out.startswith("['--use_videoalign'] 0.42")
    with pytest.raises(SystemExit, match="add --use_videoalign"):
        videoalign.main([str(script)])


def dance_grpo(inferencer, path, prompt):
    """What that host's trainer does with one video: a failure that it can catch becomes the group's worst score."""
    try:
        (row,) = inferencer.reward([path], [prompt], use_norm=True)
        return row["VQ"], row["MQ"]
    except Exception:
        return -1.0, -1.0


def test_no_failure_becomes_the_trainers_own_number(paths):
    assert dance_grpo(VideoVLMRewardInference("tests.support.hosting:scripted"), paths[0], "a") == pytest.approx(
        (0.825, 0.825)
    )
    with pytest.raises(RunStopped, match="MissingScoreError: 1 of 1 videos have no score"):
        dance_grpo(VideoVLMRewardInference("tests.support.hosting:scripted"), "/no/such.mp4", "a")
    down = VideoVLMRewardInference("http://127.0.0.1:9", timeout_s=0.3)
    with pytest.raises(RunStopped, match="service http://127.0.0.1:9"):
        dance_grpo(down, paths[0], "a")


def test_an_exhausted_budget_stops_the_run(paths):
    options = {"on_missing": "neutral", "group_size": 2, "max_unscored_share": 0.25, "min_seen": 2}
    inferencer = VideoVLMRewardInference("tests.support.hosting:scripted", **options)
    with pytest.raises(RunStopped, match="too many videos without a score .* 1 of 2 unscored"):
        try:
            inferencer.reward([paths[0], "/no/such.mp4"], ["a", "a"])
        except Exception:
            pytest.fail("the host would have gone on")
