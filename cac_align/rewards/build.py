"""Rewards from recipes: the keys of a reward recipe, and the reward that it describes.

recipe file → RewardRecipe with a JudgeRecipe per component → load_reward → Reward
reward → reward_choices → the reward and each of its components, by name
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from cac_align.cac.augmentations import FOUR_PHASES
from cac_align.config import import_name, read_recipe, refuse_unread
from cac_align.rewards.reward import Reward

if TYPE_CHECKING:
    from cac_align.rewards.cac import CaC
    from cac_align.rewards.normalise import Normaliser


SERVICE_TOKEN_ENV = "CAC_ALIGN_TOKEN"
"""The environment variable with the token of a service whose URL is given as a reward."""


@dataclass
class JudgeRecipe:
    """One component of a reward. A key that this kind of component would not read is refused."""

    # What kind of reward it is: cac, unified, normal_flow_speed, one of the other judges (unified_think, unified_flex,
    # vr_thinker, videoscore2, videophy2, skyra, videoveritas, videoalign, hpsv3, api; see docs/judges.md), or
    # "module:Name" of your own (called without arguments; it takes kind and weight only).
    kind: str = "cac"
    # Which judge: "miniature" (shipped), a folder or hub id to run here, or the URL of an OpenAI-compatible server.
    model: str = "miniature"
    # Weight in the combination, > 0; the weights are scaled to a sum of 1.
    weight: float = 1.0

    # Keys of kind cac. Where a key is null, the settings file of the judge's folder (cac.judge_settings) decides, or
    # else the default of TwoTurn, which is the paper's setting.

    # two_turn (the paper's), single_turn, or the verdict alone as "readout" or "json": cheaper, and other rewards.
    mode: str = "two_turn"
    # Instructions: full, brief, or a folder of your own texts. null: the folder's, else full.
    wording: str | None = None
    # What turn 2 sees: fresh or continued. null: the folder's, else fresh.
    context: str | None = None
    # What turn 2 looks at when turn 1 named several anomalies: hull or each. null: the folder's, else hull.
    windows: str | None = None
    # How turn 1 scans: whole, or per_type (once for each type, turn 2 once per window). null: the folder's, else whole.
    scan: str | None = None
    # Whether answers are constrained to their JSON schema. null: the folder's, else false.
    constrained: bool | None = None
    # Frames per second of turn 1. null: the folder's, else 4.
    scan_fps: float | None = None
    # Frames per second of turn 2. null: the folder's, else 8.
    look_fps: float | None = None
    # Seconds by which turn 2's clip extends beyond the window on either side. null: the folder's, else 0.
    margin_s: float | None = None
    # Limit of tokens per answer, also for kind unified. null: the folder's, else 4096 (unified: 512).
    max_new_tokens: int | None = None
    # Share of probability below which P(normal) + P(abnormal) is no verdict: the model wanted to write something else.
    min_mass: float = 0.01
    # T of R = σ(log-odds / T). null: the folder's, fitted for these augmentations, else 1, which is the paper's Eq. 7.
    temperature: float | None = None
    # Test-time augmentations (cac.augmentations), one judgement each; R is that of their mean log-odds.
    tta: list[str] = field(default_factory=lambda: ["as_is"])
    # Mean log-odds at or below which several augmentations' verdict is "abnormal" if one of them says so. It does not
    # change R. null: the folder's, fitted for these augmentations, else 0.
    threshold: float | None = None

    # Keys of kind unified and of the other judges that have a prompt of their own.

    # Your copy of upstream's prompt text; its sha256 is checked. null: our own wording, which is another reward.
    prompt_file: str | None = None
    # Whether prompt_file may be another text than upstream's.
    allow_other_prompt: bool = False

    # Keys of kinds unified_think, unified_flex and vr_thinker, which compare the videos of a prompt.

    # Which pairs are compared: round_robin, anchor or seeded (rewards.pairwise.schedules). null: round_robin.
    schedule: str | None = None
    # With how many videos the others are compared, for schedule anchor. null: 2.
    anchors: int | None = None

    # Keys of kinds api and videoveritas.

    # How many sampled verdicts are counted, 3 or more. null: 5 (videoveritas: none, P(real) is read instead).
    votes: int | None = None
    # Temperature of their sampling, above 0. null: 0.7.
    vote_temperature: float | None = None

    # Keys of kinds videoalign and hpsv3.

    # Folder or hub id of the Qwen2-VL that the judge was made from; its configuration and tokenizer are read. null: the
    # one that the checkpoint names (hpsv3: Qwen/Qwen2-VL-7B-Instruct).
    base_model: str | None = None
    # Of videoalign: the axes whose sum is the value, some of VQ, MQ, TA. null: all three.
    axes: list[str] | None = None
    # Of hpsv3: the share of the best frames whose mean is the value, above 0 and up to 1. null: 1.
    top_ratio: float | None = None
    # Of hpsv3: every which frame is asked about. null: 1.
    frame_stride: int | None = None

    # Key of kind normal_flow_speed: the speed in frame heights per second from which on the reward is 1.
    full_speed: float = 0.15

    # Revision of weights on the hub. For a server, any text that you change with its weights: it enters the provenance,
    # because a server cannot say that a checkpoint was overwritten and the ledger would return old scores.
    revision: str | None = None

    # Keys of a judge that runs here.

    # Torch device, e.g. cuda. null: a GPU where there is one.
    device: str | None = None
    # Torch dtype, e.g. bfloat16. null: bfloat16 on a GPU, float32 on a CPU.
    dtype: str | None = None
    # Answers that are decoded together. null: LocalVlm's default.
    batch_size: int | None = None
    # Limit of pixels over all frames of one video. null: the folder's, else the checkpoint's own.
    max_pixels: int | None = None

    # Keys of a judge behind a URL (vlm.server.server.ServerVlm). null: its defaults.

    # Name under which the server serves the model.
    served_model: str | None = None
    # Name of the environment variable that holds the server's API key.
    api_key_env: str | None = None
    # Requests in flight at a time.
    concurrency: int | None = None
    # Seconds to wait for one answer.
    timeout_s: float | None = None
    # How often a failed request is repeated; with backoff_s it says how long an outage may last.
    retries: int | None = None
    # Seconds before the first repetition; every further one waits twice as long.
    backoff_s: float | None = None
    # The server's dialect: vllm, sglang or openai.
    dialect: str | None = None
    # How frames are sent: as one "video" with time stamps (vLLM's default, which needs --trust-request-mm-kwargs), or
    # as "images" (the default elsewhere).
    frames: str | None = None
    # Folder or hub id of the served model's tokenizer, for a vLLM server whose /tokenize cannot be reached.
    tokenizer: str | None = None


@dataclass
class RewardRecipe:
    """A reward: a single component as it is, or the weighted mean of several."""

    # How scores are made comparable: range (known bounds to [0, 1]), reference, group or rank (see rewards.combine).
    normalise: str = "range"
    # The JSON file of reference statistics, for normalise: reference only.
    statistics: str | None = None
    # Whether to score videos outside the domain that a judge states (rewards.domain), such as the miniature's. Their
    # numbers mean nothing; it is for proving that a pipeline holds together.
    allow_out_of_domain: bool = False
    # The components by name. The default is UnifiedReward + CaC on the shipped miniature, as in the paper's Sec. 4.2,
    # CaC with the four test-time augmentations of recipes/reward/miniature_tta.yaml.
    components: dict[str, JudgeRecipe] = field(
        default_factory=lambda: {
            "unified": JudgeRecipe(kind="unified"),
            "cac": JudgeRecipe(kind="cac", tta=list(FOUR_PHASES)),
        }
    )


def load_reward(
    recipe: str | os.PathLike[str] | RewardRecipe | None = None,
    overrides: Sequence[str] = (),
    *,
    deferred: bool = False,
) -> Reward:
    """The reward that a recipe describes.

    recipe: a YAML file, a ``RewardRecipe``, the URL of ``cac-align serve``, or "module:Name" (called
    without arguments); None for UnifiedReward + CaC on the shipped miniature. overrides:
    ``key=value`` texts. deferred: models that were loaded here before are loaded when a video is
    first judged, which never happens where a ledger holds all scores. Raises ``ValueError`` when the
    recipe is wrong, a model cannot be loaded or the service does not answer.
    """
    if isinstance(recipe, str) and recipe.startswith(("http://", "https://")):
        return _load_remote(recipe, overrides)
    if is_factory(recipe, overrides):
        return call_reward_factory(str(recipe))
    recipe = _read(recipe, overrides)
    _build(recipe, {"check_only": True})
    return _build(recipe, {"deferred": deferred})


def unloaded_reward(
    recipe: str | os.PathLike[str] | RewardRecipe | None = None, overrides: Sequence[str] = ()
) -> Reward:
    """The reward of ``load_reward`` without its models: it names its components and the servers that
    they ask, and scores nothing.

    Raises ``ValueError`` for everything in the recipe that can be known to be wrong before a model is
    loaded.
    """
    if isinstance(recipe, str) and recipe.startswith(("http://", "https://")):
        return _Unloaded(recipe)
    if is_factory(recipe, overrides):
        return _Unloaded(str(recipe))
    return _build(_read(recipe, overrides), {"check_only": True})


@dataclass(frozen=True)
class _Unloaded:
    """Stands for a reward of one's own, or one behind a service, while only the recipe is checked."""

    name: str
    provenance: Mapping[str, str] = field(default_factory=dict)
    bounds: tuple[float, float] = (0.0, 1.0)

    def __call__(self, prompts: object, videos: object) -> Any:
        raise ValueError(f"{self.name} is not loaded; use load_reward")


def is_factory(recipe: str | os.PathLike[str] | RewardRecipe | None, overrides: Sequence[str]) -> bool:
    """Whether this names "module:Name". Raises ``ValueError`` for overrides that it would not read."""
    if not (isinstance(recipe, str) and ":" in recipe and not Path(recipe).exists()):
        return False
    if overrides:
        raise ValueError(
            f"{overrides[0]} would not be read, because {recipe} is called without arguments; "
            "leave it out, or write a recipe"
        )
    return True


def _read(recipe: str | os.PathLike[str] | RewardRecipe | None, overrides: Sequence[str]) -> RewardRecipe:
    """The recipe with its components' kinds and keys checked."""
    if not isinstance(recipe, RewardRecipe):
        recipe = read_recipe(RewardRecipe, recipe, overrides, section="reward")
    if not recipe.components:
        raise ValueError(
            "a reward recipe needs at least one component, e.g. components: {cac: {kind: cac, model: miniature}}"
        )
    for name, component in recipe.components.items():
        known = ("cac", "unified", "normal_flow_speed", *JUDGE_KINDS)
        if component.kind not in known and ":" not in component.kind:
            raise ValueError(
                f"component {name!r}: kind must be {', '.join(known)} or 'module:Name', received {component.kind!r}"
            )
        refuse_unread(f"component {name!r}: kind {component.kind}", component, _keys_read_by(component))
    return recipe


def _build(recipe: RewardRecipe, loading: Mapping[str, Any]) -> Reward:
    """The reward of a recipe. loading: how ``vlm.connect`` loads models."""
    loading = {"allow_out_of_domain": recipe.allow_out_of_domain, **loading}
    rewards = {name: _load_component(component, loading) for name, component in recipe.components.items()}
    if len(rewards) == 1 and recipe.normalise == "range":  # a single component keeps its own scale
        return next(iter(rewards.values()))
    from cac_align.rewards.combine import combine

    weights = {name: component.weight for name, component in recipe.components.items()}
    statistics = Path(recipe.statistics) if recipe.statistics else None
    return combine(rewards, normalise=cast("Normaliser", recipe.normalise), weights=weights, statistics=statistics)


def _load_remote(url: str, overrides: Sequence[str]) -> Reward:
    """The reward behind a service, which has to answer now. It is imported by its name: the client
    stands above this module.
    """
    if overrides:
        raise ValueError(
            f"{overrides[0]} would not be read, because {url} is a service with a recipe of its own; leave it out"
        )
    remote = import_name("cac_align.serving.client:RemoteReward")
    try:
        remote(url, timeout_s=5.0, retries=1).health()
    except ValueError as error:
        start = f"cac-align serve --reward RECIPE --port {urlsplit(url).port or 80}"
        raise ValueError(f"{error}; where it does not run, start it: {start}") from error
    return cast(Reward, remote(url, token=os.environ.get(SERVICE_TOKEN_ENV)))


def load_cac(
    recipe: str | os.PathLike[str] | RewardRecipe | None = None,
    overrides: Sequence[str] = (),
    *,
    deferred: bool = False,
) -> CaC:
    """The two-turn CaC of a reward recipe, without the other components. Arguments: see ``load_reward``.

    Raises ``ValueError`` when the recipe has none or several.
    """
    if not isinstance(recipe, RewardRecipe):
        recipe = read_recipe(RewardRecipe, recipe, overrides, section="reward")
    chosen = {name: one for name, one in recipe.components.items() if one.kind == "cac" and one.mode == "two_turn"}
    if len(chosen) != 1:
        raise ValueError(f"expected one component of kind cac, mode two_turn, received {', '.join(chosen) or 'none'}")
    from cac_align.rewards.cac import CaC

    reward = load_reward(replace(recipe, components=chosen), deferred=deferred)
    assert isinstance(reward, CaC)
    return reward


# Keys about how a judge is asked; where the recipe has none, the judge's folder decides.
_TWO_TURN = (
    "wording",
    "context",
    "windows",
    "scan",
    "constrained",
    "scan_fps",
    "look_fps",
    "margin_s",
    "max_new_tokens",
)
# Keys about a judge that runs here, and about one behind a URL.
LOCAL_KEYS = ("revision", "device", "dtype", "batch_size", "max_pixels")
SERVED_KEYS = (
    "served_model",
    "revision",
    "concurrency",
    "timeout_s",
    "retries",
    "backoff_s",
    "dialect",
    "frames",
    "tokenizer",
    "api_key_env",
)
_PROMPT = ("prompt_file", "allow_other_prompt", "max_new_tokens")
JUDGE_KINDS: Mapping[str, tuple[str, ...]] = {
    "unified_think": (*_PROMPT, "schedule", "anchors"),
    "unified_flex": (*_PROMPT, "schedule", "anchors"),
    "vr_thinker": (*_PROMPT, "schedule", "anchors"),
    "videoscore2": _PROMPT,
    "videophy2": ("prompt_file", "max_new_tokens"),
    "skyra": ("prompt_file", "max_new_tokens"),
    "videoveritas": ("prompt_file", "max_new_tokens", "votes", "vote_temperature"),
    "videoalign": ("prompt_file", "base_model", "axes"),
    "hpsv3": ("prompt_file", "base_model", "top_ratio", "frame_stride", "batch_size"),
    "api": (*_TWO_TURN, "votes", "vote_temperature"),
}
"""The other judges (``rewards.judges``) by kind, and which keys each reads besides those of its model."""
_WITH_A_HEAD = ("videoalign", "hpsv3")
# Which keys about asking each mode of CaC reads.
_MODES = {
    "two_turn": _TWO_TURN,
    "single_turn": ("scan_fps", "wording", "constrained", "max_new_tokens"),
    **dict.fromkeys(("readout", "json"), ("scan_fps", "wording")),
}


def _keys_read_by(recipe: JudgeRecipe) -> tuple[str, ...]:
    """The keys that this component reads besides kind and weight. Raises ``ValueError`` for an
    unknown mode.
    """
    judge = ("model", *LOCAL_KEYS, *SERVED_KEYS)
    if recipe.kind == "cac":
        if recipe.mode not in _MODES:
            raise ValueError(f"mode must be two_turn, single_turn, readout or json, received {recipe.mode!r}")
        return (*judge, "mode", "min_mass", "temperature", "tta", "threshold", *_MODES[recipe.mode])
    if recipe.kind == "unified":
        return judge if recipe.model == "miniature" else (*judge, *_PROMPT)
    if recipe.kind in _WITH_A_HEAD:
        return ("model", "device", "dtype", *JUDGE_KINDS[recipe.kind])
    if recipe.kind in JUDGE_KINDS:
        return (*judge, *JUDGE_KINDS[recipe.kind])
    return ("full_speed",) if recipe.kind == "normal_flow_speed" else ()


def _load_component(recipe: JudgeRecipe, loading: Mapping[str, Any]) -> Reward:
    backend: dict[str, Any] = {**_backend_options(recipe), **loading}
    if recipe.kind == "cac":
        from cac_align.cac.judge_settings import read_two_turn
        from cac_align.cac.single_turn import SingleTurn
        from cac_align.cac.verdict_only import VerdictOnly
        from cac_align.core.weights import shipped
        from cac_align.rewards.cac import CaC

        model = str(shipped("cac")) if recipe.model == "miniature" else recipe.model
        given = {name: getattr(recipe, name) for name in _TWO_TURN if getattr(recipe, name) is not None}
        settings = two_turn = replace(read_two_turn(model, recipe.revision), **given)
        if recipe.mode == "single_turn":
            settings = SingleTurn(
                two_turn.scan_fps, two_turn.wording, two_turn.constrained, two_turn.max_new_tokens, two_turn.retries
            )
        elif recipe.mode != "two_turn":
            form = cast(Literal["readout", "json"], recipe.mode)
            settings = VerdictOnly(form=form, scan_fps=two_turn.scan_fps, wording=two_turn.wording)
        settings.provenance()  # reads the instructions: a wording that is not there is told before a model loads
        options = {name: getattr(recipe, name) for name in ("min_mass", "temperature", "threshold")}
        return CaC.load(model, settings=settings, tta=tuple(recipe.tta), **options, **backend)
    if recipe.kind == "unified":
        from cac_align.rewards.unified import UnifiedReward

        if recipe.model == "miniature":
            return UnifiedReward.miniature(**backend)
        options: dict[str, Any] = {"prompt_file": Path(recipe.prompt_file)} if recipe.prompt_file else {}
        if recipe.max_new_tokens is not None:
            options["max_new_tokens"] = recipe.max_new_tokens
        return UnifiedReward.load(recipe.model, allow_other_prompt=recipe.allow_other_prompt, **options, **backend)
    if recipe.kind == "normal_flow_speed":
        from cac_align.rewards.normal_flow_speed import NormalFlowSpeed

        return NormalFlowSpeed(recipe.full_speed)
    if recipe.kind in JUDGE_KINDS:
        from cac_align.rewards.judges.build import load_judge

        if recipe.model == "miniature":
            raise ValueError(
                f"kind {recipe.kind} has no miniature: name a checkpoint's folder or a server's URL as model"
            )
        given = {name: getattr(recipe, name) for name in JUDGE_KINDS[recipe.kind] if getattr(recipe, name) is not None}
        return load_judge(recipe.kind, recipe.model, given, backend)
    return _Unloaded(recipe.kind) if loading.get("check_only") else call_reward_factory(recipe.kind)


def call_reward_factory(name: str) -> Reward:
    """What "module:Name" returns when it is called without arguments. Raises ``ValueError`` when it
    is no reward.
    """
    try:
        reward: Any = import_name(name)()
    except TypeError as error:
        raise ValueError(
            f"{name} cannot be called without arguments ({error}); expected a function or class that makes a reward so"
        ) from error
    if not (callable(reward) and hasattr(reward, "name") and hasattr(reward, "provenance")):
        raise ValueError(
            f"{name} returns a {type(reward).__name__}, which is no reward: it needs a name, a provenance and a call"
        )
    return cast(Reward, reward)


def _backend_options(recipe: JudgeRecipe) -> dict[str, Any]:
    """The backend keys that the recipe states, as keyword arguments of ``LocalVlm.load`` or
    ``ServerVlm``.

    Raises ``ValueError`` for a key of the other backend.
    """
    server = recipe.model.startswith(("http://", "https://"))
    names, foreign = (SERVED_KEYS, LOCAL_KEYS) if server else (LOCAL_KEYS, SERVED_KEYS)
    for name in foreign:
        if name not in names and getattr(recipe, name) is not None:
            raise ValueError(
                f"{name} is for a judge {'that runs here' if server else 'behind a URL'}, and model is {recipe.model}; "
                "leave it out"
            )
    options = {
        name: getattr(recipe, name) for name in names if name != "api_key_env" and getattr(recipe, name) is not None
    }
    if recipe.api_key_env:
        key = os.environ.get(recipe.api_key_env)
        if not key:
            raise ValueError(f"api_key_env names {recipe.api_key_env}, which is not set in the environment")
        options["api_key"] = key
    return options


def reward_choices(reward: Reward) -> dict[str, Reward]:
    """The rewards among which a host trainer or a client can choose, by name.

    These are the reward itself, first, and for a combination each of its components, normalised as
    in the combination. A single reward whose bounds are not 0 and 1 (UnifiedReward: 1 to 5) is
    normalised as well, because hosts add rewards up. Raises ``ValueError`` for a reward that
    compares the videos of one prompt, because a call of a host or client may hold a part of them
    only.
    """
    from cac_align.rewards.combine import Combined, bounds_of, compares_videos, pointwise_remedy

    if reason := compares_videos(reward):
        raise ValueError(
            f"reward {reward.name!r}: {reason}, but a host's call holds only a fragment of them; "
            f"{pointwise_remedy(reason)}, or give the host the components one by one and let it normalise"
        )
    normalise = getattr(reward, "normalise", None)
    if normalise is None and bounds_of(reward) not in (None, (0.0, 1.0)):
        return {reward.name: Combined({reward.name: reward}, "range", {reward.name: 1.0})}
    choices = {reward.name: reward}
    if normalise is not None:
        assert isinstance(reward, Combined)
        for name, component in reward.components.items():
            statistics = {key: value for key, value in reward.statistics.items() if key == name}
            choices[name] = Combined({name: component}, reward.normalise, {name: 1.0}, statistics)
    return choices
