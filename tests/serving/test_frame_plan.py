"""Frame plans: which frames a reward reads, and how many bytes that saves."""

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image

from cac_align.cac.single_turn import SingleTurn
from cac_align.cac.verdict_only import VerdictOnly
from cac_align.core.video import Video
from cac_align.rewards.cac import CaC
from cac_align.serving.frame_plan import FramePlan, frame_plan_of
from cac_align.serving.video_parts import frames_part
from cac_align.serving.wire import ScoreItem, ScoreRequest, pack
from tests.support.hosting import Brightness, scripted


def test_plans_follow_the_reward():
    assert frame_plan_of(scripted()) == FramePlan(scan_fps=(4.0,), look_fps=(8.0,), counts=(16,))
    assert frame_plan_of(Brightness()) is None
    vlm = scripted().components["cac"].vlm
    for settings in (SingleTurn(), VerdictOnly()):  # no second turn, so no window is sampled
        assert frame_plan_of(CaC(vlm, settings)) == FramePlan(scan_fps=(4.0,), look_fps=(), counts=())
        video = Video.open(np.zeros((17, 32, 32, 3), np.uint8), fps=16)
        assert frame_plan_of(CaC(vlm, settings)).indices(video) == (0, 4, 8, 12, 16)


def test_an_81_frame_480p_video_is_below_5_mb_on_the_wire():
    with Image.open(get_sample_data("grace_hopper.jpg")) as photo:
        scene = np.asarray(photo.convert("RGB").resize((832, 975), Image.Resampling.LANCZOS).crop((0, 100, 832, 580)))
    video = Video.open(np.stack([np.roll(scene, 3 * frame, axis=1) for frame in range(81)]), fps=16)
    indices = FramePlan().indices(video)
    assert len(indices) == 49  # 41 at 8 fps, and the 8 odd ones of int(i * 81 / 16)
    body = pack(ScoreRequest(items=(ScoreItem(prompt="a portrait", video=frames_part(video, indices)),)))
    assert 2_000_000 < len(body) <= 5_000_000
