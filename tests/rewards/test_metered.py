"""Counting what judges cost, with real rewards on scripted models."""

import numpy as np

from cac_align.core.video import Video
from cac_align.rewards.cac import CaC
from cac_align.rewards.combine import combine
from cac_align.rewards.metered import Usage, UsageMeter, metered
from cac_align.rewards.normal_flow_speed import NormalFlowSpeed
from cac_align.rewards.reward import Score
from cac_align.rewards.unified import UnifiedReward
from cac_align.vlm.protocol import Reply
from cac_align.vlm.scripted import ScriptedVlm

NORMAL = '{"COT": "fine", "status": "normal", "anomalies": []}'


def clip():
    return Video.open(np.zeros((9, 16, 16, 3), np.uint8), fps=8)


def test_calls_and_tokens_of_a_combination_are_those_of_its_replies():
    def script(conversation):
        return Reply(NORMAL, {"normal": -0.1, "abnormal": -3.0}, num_prompt_tokens=100, num_tokens=11)

    meter = UsageMeter()
    vlm = ScriptedVlm(script)
    plain = combine({"cac": CaC(vlm), "motion": NormalFlowSpeed()}, weights={"cac": 0.5, "motion": 0.5})
    reward = metered(plain, meter)
    before = meter.reading()
    scores = reward(["a", "b", "c"], [clip()] * 3)
    assert all(score.scored for score in scores)
    assert [score.value for score in scores] == [score.value for score in plain(["a", "b", "c"], [clip()] * 3)]
    assert meter.since(before) == Usage(calls=3, tokens=333)  # three first turns that say normal; motion costs nothing
    assert dict(reward.provenance) == dict(plain.provenance)


def test_a_retry_is_a_call():
    meter = UsageMeter()
    reward = metered(CaC(ScriptedVlm(["what?", NORMAL])), meter)
    assert reward("a", clip())[0].scored
    assert meter.since((0, 0, 0)).calls == 2


def test_tokens_that_nobody_counted_are_unknown_and_never_zero():
    class Service:
        name, provenance = "service", {}

        def __call__(self, prompts, videos):
            return [Score(0.5)] * len(videos)

    meter = UsageMeter()
    reward = metered(Service(), meter)
    assert [score.value for score in reward(["a", "b"], [clip(), clip()])] == [0.5, 0.5]
    assert meter.since((0, 0, 0)) == Usage(calls=2, tokens=None)
    assert (Usage(1, 10) + Usage(2, None)) == Usage(3, None)


def test_unified_reward_is_counted_and_itself_left_alone():
    axes = "Alignment Score (1-5): 3\nPhysics Score (1-5): 4\nStyle Score (1-5): 5"
    own = UnifiedReward(ScriptedVlm(lambda conversation: Reply(axes, num_prompt_tokens=7, num_tokens=3)))
    meter = UsageMeter()
    (score,) = metered(own, meter)(["a"], [clip()])
    assert score.value == 4.0 and meter.since((0, 0, 0)) == Usage(calls=1, tokens=10)
    own(["a"], [clip()])
    assert meter.since((0, 0, 0)).calls == 1
