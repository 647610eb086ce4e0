"""Two-turn rollouts of the policy: G sampled first turns per video, each cropped along its own
window, G second turns.

prompt + video → turn 1 prompt, prefilled once → its cache repeated G times → G answers → G windows
→ G clips → G answers → Rollout In the single-turn formulation (``RolloutSettings.turns`` 1) a
rollout ends with the first answer, which holds windows and boxes.

The vision encoder runs once per distinct video and turn, whatever G is, and turn 1's prompt goes
through the language model once. Prompts are prefilled a few rows at a time, so only the cache of
keys and values grows with G. Tokens are drawn by inverting the distribution at numbers that belong
to (seed, step, video, rollout, turn): what else shares the batch does not matter. Tokens that stand
for no text (vision placeholders, the chat's marks) are never drawn.

Source: CaC (arXiv 2605.11723) Sec. 3.2 (stage 3), Appendix C.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from transformers import DynamicCache

from cac_align.cac.prompts import single_turn_conversation, turn_one_conversation, turn_two_conversation
from cac_align.cac.two_turn import unusable_reason
from cac_align.core.answer import read_answer
from cac_align.core.judgement import Turn, hull
from cac_align.core.video import Frames, Video
from cac_align.data.records import Record
from cac_align.training.early_stopping import Stopped
from cac_align.training.policy import Segment, base_model, make_batch, position_ids, store_videos, to_device
from cac_align.training.samples import end_token, seeded_generator
from cac_align.training.terms import Ending, Terms, TermWeights, terms
from cac_align.vlm.engine.spelling import text_and_ends, vocabulary
from cac_align.vlm.inputs import ControlToken, encode_one
from cac_align.vlm.protocol import Conversation


@dataclass(frozen=True)
class RolloutRecipe:
    """The recipe section ``rollout``; frame rates, margin and wording come from the section
    ``data``.
    """

    # G: rollouts per video, at least 2, because advantages compare them.
    group_size: int = 8
    # Temperature of sampling, and of the distribution that scores the answers.
    temperature: float = 1.0
    # Token limit of each turn's answer; one that is cut off counts as malformed.
    max_new_tokens: int = 1024
    # Whether turn 2 sees turn 1's conversation ("continued") or only its suspicion ("fresh"), as in ``TwoTurn``.
    context: Literal["fresh", "continued"] = "fresh"
    # Prompts that go through the language model together while caches are filled; memory grows with it.
    prefill_rows: int = 4

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(
                f"rollout.group_size must be at least 2 (advantages compare rollouts), received {self.group_size}"
            )
        if self.temperature <= 0 or self.max_new_tokens < 1 or self.prefill_rows < 1:
            raise ValueError("rollout: expected temperature > 0, max_new_tokens >= 1 and prefill_rows >= 1")
        if self.context not in ("fresh", "continued"):
            raise ValueError(f"rollout.context must be 'fresh' or 'continued', received {self.context!r}")


@dataclass(frozen=True, eq=False)
class VideoPrompt:
    """One video to be judged. slot: its place in the step's batch, from which its random numbers
    come.
    """

    slot: int
    record: Record
    video: Video
    scan: Frames


@dataclass(frozen=True, eq=False)
class Rollout:
    """One complete rollout: the answer of each turn, how it ended, and the segments that are
    scored.

    scan_times_s, look_times_s: time stamps of the frames that each turn was shown. ``error``: why
    it has no score (its clip could not be read: not the policy's fault), or None.
    """

    slot: int
    number: int
    record: Record
    first: Turn
    second: Turn | None
    ending: Ending
    scan_times_s: tuple[float, ...]
    segments: tuple[Segment, ...]
    error: str | None = None
    look_times_s: tuple[float, ...] = ()

    def reward_terms(self, weights: TermWeights) -> Terms:
        """Eq. 2-6."""
        return terms(
            self.first,
            self.second,
            self.ending,
            self.record,
            self.scan_times_s,
            weights,
            look_times_s=self.look_times_s,
        )

    @property
    def num_tokens(self) -> int:
        return sum(len(segment.answer) for segment in self.segments)

    @property
    def malformed(self) -> bool:
        """An answer broke its schema, or no clip could be cut."""
        return self.ending == "window" or not self.first.valid or (self.second is not None and not self.second.valid)


@dataclass(frozen=True)
class RolloutSettings:
    """How turns are asked and drawn: the recipe's parts, gathered."""

    rollout: RolloutRecipe
    wording: str
    look_fps: float
    max_pixels: int | None
    seed: int
    step: int
    turns: int = 2
    margin_s: float = 0.0


def open_video_prompt(slot: int, record: Record, video: Video, scan_fps: float) -> VideoPrompt:
    """Raises ``ValueError`` when the video cannot be read."""
    return VideoPrompt(slot, record, video, video.sample(scan_fps))


@torch.no_grad()
def roll_out(
    model: Any,
    processor: Any,
    prompts: Sequence[VideoPrompt],
    settings: RolloutSettings,
    store: dict[Any, tuple[Tensor, Tensor]],
    *,
    greedy: bool = False,
) -> list[Rollout]:
    """G rollouts of every prompt, in order (greedy: one, of the likeliest tokens). Patches of all
    videos that were shown are put into ``store``, for scoring.

    Raises ``Stopped`` when the model's logits are not finite.
    """
    single = settings.turns == 1
    ask_first = single_turn_conversation if single else turn_one_conversation
    group = 1 if greedy else settings.rollout.group_size
    firsts: list[Segment] = []
    conversations: list[Conversation] = []
    for prompt in prompts:
        asked = ask_first(prompt.record.prompt, prompt.scan, wording=settings.wording)
        conversations.append(asked)
        firsts.append(_segment(processor, asked, [(prompt.slot, prompt.scan.indices)], store, settings.max_pixels))
    own = [(prompt.slot, number) for prompt in prompts for number in range(group)]
    noise = None if greedy else torch.stack([_noise(settings, slot, number, 1) for slot, number in own])
    answers = sample(model, processor, firsts, store, settings.rollout, noise, repeats=group)
    rollouts = []
    for at, answer in enumerate(answers):
        prompt, number = prompts[at // group], at % group
        turn = _read(processor, answer, 1, prompt.scan, boxed=single)
        ending = _first_ending(turn, single=single)
        scored = replace(firsts[at // group], answer=answer)
        rollouts.append(Rollout(prompt.slot, number, prompt.record, turn, None, ending, prompt.scan.times_s, (scored,)))
    looks = []
    for at, rollout in enumerate(rollouts):
        if rollout.ending != "window" or unusable_reason(rollout.first, single=single) is not None:
            continue
        try:
            clip, asked = _look(prompts[at // group], conversations[at // group], rollout, settings)
        except ValueError as error:
            rollouts[at] = replace(rollout, error=f"its clip cannot be read: {error}")
            continue
        videos = [*firsts[at // group].videos * (settings.rollout.context == "continued"), (rollout.slot, clip.indices)]
        try:
            looks.append((at, _segment(processor, asked, videos, store, settings.max_pixels), clip))
        except ControlToken:
            continue  # in the text of the first answer: nothing can be asked about it
        except ValueError as error:
            rollouts[at] = replace(rollout, error=f"its clip cannot be shown: {error}")
    if looks:
        own = [(rollouts[at].slot, rollouts[at].number) for at, _, _ in looks]
        noise = None if greedy else torch.stack([_noise(settings, slot, number, 2) for slot, number in own])
        second_answers = sample(model, processor, [segment for _, segment, _ in looks], store, settings.rollout, noise)
        for (at, segment, clip), answer in zip(looks, second_answers, strict=True):
            second = _read(processor, answer, 2, clip)
            segments = (*rollouts[at].segments, replace(segment, answer=answer))
            rollouts[at] = replace(
                rollouts[at], second=second, ending="second turn", segments=segments, look_times_s=clip.times_s
            )
    return rollouts


def _first_ending(turn: Turn, *, single: bool) -> Ending:
    """How a rollout ends if nothing follows its first answer."""
    if unusable_reason(turn, single=single) is not None:
        return "window"
    return "single turn" if single else "normal" if turn.status == "normal" else "window"


def _look(
    prompt: VideoPrompt, before: Conversation, rollout: Rollout, settings: RolloutSettings
) -> tuple[Frames, Conversation]:
    """crop(f, y1), and what the second turn is asked about it. Raises ``ValueError`` when the clip
    cannot be read.
    """
    window = hull([anomaly.window for anomaly in rollout.first.anomalies if anomaly.window is not None])
    clip = prompt.video.clip(window, settings.look_fps, settings.margin_s)
    chat = before if settings.rollout.context == "continued" else None
    return clip, turn_two_conversation(prompt.record.prompt, clip, rollout.first, wording=settings.wording, before=chat)


def _segment(
    processor: Any,
    asked: Conversation,
    videos: Sequence[Any],
    store: dict[Any, tuple[Tensor, Tensor]],
    max_pixels: int | None,
) -> Segment:
    row = encode_one(processor, asked, max_pixels=max_pixels)
    store_videos(row, videos, store)
    return Segment(row["input_ids"], (), tuple(videos))


def _noise(settings: RolloutSettings, slot: int, number: int, turn: int) -> Float[Tensor, " N"]:
    """The numbers in [0, 1) at which this rollout's tokens are drawn."""
    source = seeded_generator(settings.seed, settings.step, slot, number, turn)
    return torch.rand(settings.rollout.max_new_tokens, generator=source, dtype=torch.float64)


def _read(
    processor: Any, answer: tuple[int, ...], number: Literal[1, 2], shown: Frames, *, boxed: bool = False
) -> Turn:
    text, _ = text_and_ends(vocabulary(processor.tokenizer), answer)
    turn = read_answer(text, number=number, frames=shown.indices, times_s=shown.times_s, boxed=boxed)
    if answer and answer[-1] == end_token(processor):
        return turn
    return replace(turn, faults=(*turn.faults, "truncated: the answer hit the token limit"))


# ---- sampling -------------------------------------------------------------------------------------------------------


def forbidden_tokens(processor: Any, size: int) -> Bool[Tensor, " V"]:
    """Tokens that may never be drawn: every special token but the end, and ids that stand for no
    text.
    """
    known = [index for index, piece in enumerate(vocabulary(processor.tokenizer).of_id[:size]) if piece is not None]
    out = torch.ones(size, dtype=torch.bool)
    out[[*known, end_token(processor)]] = False
    return out


@torch.no_grad()
def sample(
    model: Any,
    processor: Any,
    segments: Sequence[Segment],
    store: Mapping[Any, tuple[Tensor, Tensor]],
    recipe: RolloutRecipe,
    noise: Float[Tensor, "R N"] | None,
    repeats: int = 1,
) -> list[tuple[int, ...]]:
    """``repeats`` sampled answers to each prompt, row by row (R = prompts × repeats), the end token
    included where it was drawn. ``noise``: numbers in [0, 1) at which tokens are drawn; None
    takes the likeliest token.

    Raises ``Stopped`` when the logits are not finite.
    """
    net = base_model(model)
    end = end_token(processor)
    cache, state, mask, following = prefill(model, processor, segments, store, recipe.prefill_rows)
    if repeats > 1:
        cache.batch_repeat_interleave(repeats)
        state, mask, following = (tensor.repeat_interleave(repeats, 0) for tensor in (state, mask, following))
    device = state.device
    forbidden = forbidden_tokens(processor, net.lm_head.weight.shape[0]).to(device)
    noise = None if noise is None else noise.to(device, torch.float32)
    rows = mask.shape[0]
    drawn = torch.full((rows, recipe.max_new_tokens), end, dtype=torch.long, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    going = torch.arange(
        rows, device=device
    )  # which row each line of the batch belongs to; lines that ended leave it by halves
    mask = torch.nn.functional.pad(mask, (0, recipe.max_new_tokens), value=1)
    length = mask.shape[1] - recipe.max_new_tokens
    for step in range(recipe.max_new_tokens):
        logits = net.lm_head(state).float() / recipe.temperature
        if not torch.isfinite(logits).all():
            raise Stopped(
                "the policy's logits are NaN or infinite while sampling; lower run.lr and start from a fresh out="
            )
        logits = logits.masked_fill(forbidden, -torch.inf)
        chosen = logits.argmax(-1) if noise is None else sample_by_inverse_cdf(logits.softmax(-1), noise[going, step])
        chosen = torch.where(ended[going], end, chosen)
        drawn[going, step] = chosen
        ended[going] |= chosen == end
        left = torch.nonzero(~ended[going]).squeeze(1)
        if step + 1 == recipe.max_new_tokens or len(left) == 0:
            break
        if 2 * len(left) <= len(going):
            going, chosen, mask, following = going[left], chosen[left], mask[left], following[left]
            cache.batch_select_indices(left)
        state = net.model.language_model(
            inputs_embeds=net.get_input_embeddings()(chosen)[:, None],
            attention_mask=mask[:, : length + step + 1],
            position_ids=(following + step)[None, :, None].expand(3, len(going), 1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
    answers = []
    for row in drawn.tolist():
        answers.append(tuple(row[: row.index(end) + 1] if end in row else row))
    return answers


def sample_by_inverse_cdf(shares: Float[Tensor, "R V"], at: Float[Tensor, " R"]) -> Int64[Tensor, " R"]:
    """The token whose stretch of the summed-up distribution holds each number in [0, 1). One of
    probability 0 is never drawn.
    """
    heaped = shares.cumsum(-1)
    chosen = torch.searchsorted(heaped, at[:, None] * heaped[:, -1:], right=True).squeeze(1)
    last = shares.shape[1] - 1 - (shares > 0).flip(1).int().argmax(1)  # rounding may point behind the last stretch
    return torch.minimum(chosen, last)


def prefill(
    model: Any, processor: Any, segments: Sequence[Segment], store: Mapping[Any, tuple[Tensor, Tensor]], rows: int
) -> tuple[DynamicCache, Tensor, Tensor, Tensor]:
    """Cache, last hidden state (B, H), mask (B, L) and next positions (B) of prompts, ``rows`` at a
    time: activations never hold more.

    Each distinct video goes through the encoder once.
    """
    net = base_model(model)
    features: dict[Any, Any] = {}
    for key in dict.fromkeys(key for segment in segments for key in segment.videos):
        patches, grid = (tensor.to(net.device) for tensor in store[key])
        features[key] = net.model.get_video_features(patches, grid, return_dict=True)
    length = max(segment.ids.shape[1] for segment in segments)
    merged: Any = None
    states, masks, nexts = [], [], []
    for at in range(0, len(segments), rows):
        part = [replace(segment, answer=()) for segment in segments[at : at + rows]]
        batch = make_batch(processor, part, store)
        batch = {name: batch[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
        short = length - batch["input_ids"].shape[1]  # one length for all parts: their caches are joined
        batch = to_device(
            net.device, {name: torch.nn.functional.pad(tensor, (short, 0)) for name, tensor in batch.items()}
        )
        shown = [key for segment in part for key in segment.videos]
        seen = _joined([features[key] for key in shown])
        grids = torch.cat([store[key][1] for key in shown]).to(net.device) if shown else None
        positions, following = position_ids(model, batch, grids)
        cache = DynamicCache(config=net.config.text_config)
        out = net.model(**batch, **seen, position_ids=positions, past_key_values=cache, use_cache=True)
        states.append(out.last_hidden_state[:, -1])
        masks.append(batch["attention_mask"])
        nexts.append(following)
        merged = cache if merged is None else _stacked(merged, cache, net.config.text_config)
    return merged, torch.cat(states), torch.cat(masks), torch.cat(nexts)


def _joined(outputs: Sequence[Any]) -> dict[str, Any]:
    if not outputs:
        return {}
    kind = type(outputs[0])
    levels = zip(*(output.deepstack_features for output in outputs), strict=True)
    spread = kind(
        pooler_output=tuple(output.pooler_output[0] for output in outputs),
        deepstack_features=[tuple(level[0] for level in same) for same in levels],
    )
    return {"mm_encoder_outputs": {"video": spread}}


def _stacked(first: DynamicCache, second: DynamicCache, config: Any) -> DynamicCache:
    """One cache with the rows of both. Layer by layer, so that no more than one layer stands in
    memory twice.
    """
    joined = DynamicCache(config=config)
    layers: Any = zip(first.layers, second.layers, strict=True)
    for index, (a, b) in enumerate(layers):
        joined.update(torch.cat([a.keys, b.keys]), torch.cat([a.values, b.values]), index)
        a.keys = a.values = b.keys = b.values = None
    return joined
