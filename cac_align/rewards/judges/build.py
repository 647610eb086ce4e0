"""The judges of this folder by the ``kind`` of a reward recipe.

kind, model, the recipe's keys → load_judge → Reward
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cac_align.rewards.judges.unified_pairs import UnifiedPairs
from cac_align.rewards.judges.videophy2 import VideoPhy2
from cac_align.rewards.judges.videoscore2 import VideoScore2
from cac_align.rewards.judges.votes import VotedCaC, api_voters
from cac_align.rewards.pairwise.tournament import Tournament
from cac_align.rewards.reward import Reward
from cac_align.vlm.connect import connect

# What a server is called by when the recipe does not say it: the name of the published checkpoint.
_SERVED = {
    "unified_think": "UnifiedReward-Think",
    "unified_flex": "UnifiedReward-Flex",
    "videoscore2": "VideoScore2",
    "videophy2": "videophy_2_auto",
}


def load_judge(kind: str, model: str, options: Mapping[str, Any], backend: Mapping[str, Any]) -> Reward:
    """A judge as a reward.

    kind: one of ``rewards.build.JUDGE_KINDS``. options: the recipe's keys that this kind reads, where
    they are given. backend: keyword arguments of ``vlm.connect``. Raises ``ValueError`` when a key or
    the prompt file is not usable, or the model cannot be loaded.
    """
    backend = {name: value for name, value in backend.items() if name != "allow_out_of_domain"}
    server = model.startswith(("http://", "https://"))
    if kind in ("api", "videophy2") and not server:
        raise ValueError(f"kind {kind} is asked behind a URL, received model {model!r}; name the server's URL")
    if kind == "api":
        return _votes(model, dict(options), backend)
    if server and kind in _SERVED:
        backend.setdefault("served_model", _SERVED[kind])
    prompt = {
        name: options[name] for name in ("prompt_file", "allow_other_prompt", "max_new_tokens") if name in options
    }
    prompt.setdefault("prompt_file", None)
    if kind == "videoscore2":
        return VideoScore2(connect(model, **backend), **prompt)
    if kind == "videophy2":
        prompt.pop("allow_other_prompt", None)
        return VideoPhy2(connect(model, **backend), **prompt)
    judge = UnifiedPairs(kind, connect(model, **backend), **prompt)
    return Tournament(judge, **{name: options[name] for name in ("schedule", "anchors") if name in options})


def _votes(url: str, options: dict[str, Any], backend: dict[str, Any]) -> Reward:
    from cac_align.cac.two_turn import TwoTurn

    votes, temperature = options.pop("votes", 5), options.pop("vote_temperature", 0.7)
    settings = TwoTurn(probabilities=False, **options)
    settings.provenance()  # reads the instructions, so that a wording that is not there is told at once
    backend.setdefault("dialect", "openai")
    if not backend.get("served_model"):
        raise ValueError("kind api needs served_model, the name under which the endpoint knows the model")
    return VotedCaC(api_voters(lambda **sampling: connect(url, **sampling, **backend), votes, temperature), settings)
