"""The judges of this folder by the ``kind`` of a reward recipe.

kind, model, the recipe's keys → load_judge → Reward
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cac_align.rewards.judges.hpsv3 import HpsV3
from cac_align.rewards.judges.skyra import Skyra
from cac_align.rewards.judges.unified_pairs import UnifiedPairs
from cac_align.rewards.judges.videoalign import VideoAlign
from cac_align.rewards.judges.videophy2 import VideoPhy2
from cac_align.rewards.judges.videoscore2 import VideoScore2
from cac_align.rewards.judges.videoveritas import VideoVeritas
from cac_align.rewards.judges.votes import VotedCaC, api_voters
from cac_align.rewards.judges.vr_thinker import VrThinker
from cac_align.rewards.pairwise.tournament import Tournament
from cac_align.rewards.reward import Reward
from cac_align.vlm.connect import connect
from cac_align.vlm.protocol import Vlm

# What a server is called by when the recipe does not say it: the name of the published checkpoint.
SERVED_MODELS = {
    "unified_think": "UnifiedReward-Think",
    "unified_flex": "UnifiedReward-Flex",
    "videoscore2": "VideoScore2",
    "videophy2": "videophy_2_auto",
    "skyra": "Skyra-RL",
    "videoveritas": "VideoVeritas",
    "vr_thinker": "vrthinker",
}
# Checkpoints whose architecture does not run here.
_BEHIND_A_URL = ("api", "videophy2", "skyra", "vr_thinker")


def load_judge(kind: str, model: str, options: Mapping[str, Any], backend: Mapping[str, Any]) -> Reward:
    """A judge as a reward.

    kind: one of ``rewards.build.JUDGE_KINDS``. options: the recipe's keys that this kind reads, where
    they are given. backend: keyword arguments of ``vlm.connect``. Raises ``ValueError`` when a key or
    the prompt file is not usable, or the model cannot be loaded.
    """
    backend = {name: value for name, value in backend.items() if name != "allow_out_of_domain"}
    server = model.startswith(("http://", "https://"))
    if kind in _BEHIND_A_URL and not server:
        raise ValueError(f"kind {kind} is asked behind a URL, received model {model!r}; name the server's URL")
    if kind in ("videoalign", "hpsv3"):
        return _with_head(kind, model, dict(options), backend)
    if kind == "api":
        return _votes(model, dict(options), backend)
    if server and kind in SERVED_MODELS:
        backend.setdefault("served_model", SERVED_MODELS[kind])
    prompt = {
        name: options[name] for name in ("prompt_file", "allow_other_prompt", "max_new_tokens") if name in options
    }
    prompt.setdefault("prompt_file", None)
    if kind == "videoscore2":
        return VideoScore2(connect(model, **backend), **prompt)
    if kind in ("videophy2", "skyra"):
        return {"videophy2": VideoPhy2, "skyra": Skyra}[kind](connect(model, **backend), **prompt)
    if kind == "videoveritas":
        return VideoVeritas(_voters(model, options, backend, required=False), **prompt)
    pairs = connect(model, **backend)
    judge = VrThinker(pairs, **prompt) if kind == "vr_thinker" else UnifiedPairs(kind, pairs, **prompt)
    return Tournament(judge, **{name: options[name] for name in ("schedule", "anchors") if name in options})


def _with_head(kind: str, model: str, options: dict[str, Any], backend: Mapping[str, Any]) -> Reward:
    if model.startswith(("http://", "https://")):
        raise ValueError(f"kind {kind} runs here, received model {model}; name the folder of its checkpoint")
    options["base"] = options.pop("base_model", None)
    options.setdefault("prompt_file", None)
    options |= {name: backend[name] for name in ("device", "dtype") if name in backend}
    judge = VideoAlign(model, **options) if kind == "videoalign" else HpsV3(model, **options)
    if not (backend.get("check_only") or backend.get("deferred")):
        judge.model.load()
    return judge


def _votes(url: str, options: dict[str, Any], backend: dict[str, Any]) -> Reward:
    from cac_align.cac.two_turn import TwoTurn

    asked = {name: value for name, value in options.items() if name not in ("votes", "vote_temperature")}
    settings = TwoTurn(probabilities=False, **asked)
    settings.provenance()  # reads the instructions, so that a wording that is not there is told at once
    backend.setdefault("dialect", "openai")
    if not backend.get("served_model"):
        raise ValueError("kind api needs served_model, the name under which the endpoint knows the model")
    return VotedCaC(_voters(url, options, backend, required=True), settings)


def _voters(model: str, options: Mapping[str, Any], backend: Mapping[str, Any], *, required: bool) -> tuple[Vlm, ...]:
    """The model once per vote. Where votes are not ``required`` and not asked for: the model itself, greedy."""
    votes = options.get("votes", 5 if required else None)
    if votes is None:
        if "vote_temperature" in options:
            raise ValueError("vote_temperature is read with votes; name how many votes are sampled")
        return (connect(model, **backend),)
    if not model.startswith(("http://", "https://")):
        raise ValueError(f"votes are sampled by a server, received model {model!r}; name a URL, or leave votes out")
    if votes < 3:
        raise ValueError(f"votes must be 3 or more, received {votes}: a share of fewer says nothing")
    temperature = options.get("vote_temperature", 0.7)
    return api_voters(lambda **sampling: connect(model, **sampling, **backend), votes, temperature)
