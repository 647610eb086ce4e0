"""What a small judge is shown while it learns: pool clips, asked about exactly as at inference,
with the teacher's answers.

couple of clips → degrade → turn_one_conversation / turn_two_conversation / UnifiedReward's
conversation + the right answer → Example

Three kinds of example for the two-turn judge, one for the other: ``pair`` (two neighbouring frames,
boxes: the single-frame warm-up, two frames being what one temporal patch holds), ``scan`` (turn 1),
``look`` (turn 2, on right, shifted, too wide and wrong windows), and the holistic grades. A batch
holds clips of one length and one kind, so that little is padded. Everything is drawn from a
generator seeded by (seed, step): examples depend on nothing that happened before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cac_align.cac.prompts import turn_one_conversation, turn_two_conversation
from cac_align.core.judgement import Anomaly, Turn, Window, shown_frames
from cac_align.core.video import Frames
from cac_align.miniature.teacher import teacher
from cac_align.miniature.world.grammar import COLOURS, MOTIONS, Spec, parse_prompt
from cac_align.miniature.world.settings import FULL, PLAYGROUND
from cac_align.miniature.world.world import make_clip
from cac_align.rewards.unified import AXES, fill_prompt, own_prompt, sample_indices, write_axes
from cac_align.vlm.protocol import Conversation, Message
from research.training.pool import (
    CHANNELS,
    KEPT_EVERY,
    ClipPool,
    MixtureConfig,
    PoolClip,
    degrade,
    mirrored,
    recoloured,
)


@dataclass(frozen=True)
class Example:
    """A conversation that ends with the user's message, the answer that is right, and the clip it
    is about.
    """

    conversation: Conversation
    answer: str
    clip: PoolClip


_CLAIMS: tuple[Anomaly, ...] = tuple(
    Anomaly(type=kind_of, window=None, reason=f"the {reason}", region=region)
    for kind_of, reason, region in (
        ("Object Distortion", "red ball melts and its outline wobbles", "red ball"),
        ("Object Distortion", "red box splits into two halves", "red box"),
        ("Object Distortion", "red ball is stretched out of shape", "red ball"),
        ("Human Distortion", "red figure grows an extra arm", "extra arm of the red figure"),
        ("Human Distortion", "head comes off the red figure", "head of the red figure"),
        ("Motion Anomalies", "red ball suddenly disappears", "red ball"),
        ("Motion Anomalies", "red figure jumps to another place", "red figure"),
        ("Motion Anomalies", "red sign jitters from frame to frame", "red sign"),
        ("Physical Violations", "red ball floats up without support", "red ball"),
        ("Physical Violations", "red box sinks into the ground", "red box"),
    )
)
"""Suspicions that fit any scene, told of whoever is in it."""


def _shown(
    clip: PoolClip, indices: Sequence[int], fps: float, rng: np.random.Generator, mixture: MixtureConfig
) -> Frames:
    frames = clip.frames(indices, fps)
    if rng.random() >= mixture.degraded:
        return frames
    return Frames(
        degrade(frames.pixels, rng, mixture.degrade_strength),
        frames.indices,
        frames.times_s,
        frames.fps,
        frames.num_source_frames,
    )


# ---- examples for the two-turn judge -------------------------------------------------------------------------------


def cac_examples(
    pool: ClipPool, mixture: MixtureConfig, batch: int, *, seed: tuple[int, int], pairs: bool, part: int = 0
) -> list[Example]:
    """One batch for the two-turn judge, half abnormal and half normal: each defect beside its scene
    without it, where that has the same length. ``pairs``: the warm-up, frame pairs only. ``part``:
    which part of a larger batch this is; all are of one kind, world and length. Raises
    ``ValueError`` when ``batch`` is odd.
    """
    if batch % 2:
        raise ValueError(f"batch must be even (half normal, half abnormal), received {batch}")
    rng = np.random.default_rng(seed)
    draw = 0.0 if pairs else rng.random()
    world, length = pool.draw(rng, mixture)
    late = bool(mixture.later) and rng.random() < mixture.later
    if part:
        rng = np.random.default_rng((*seed, 2, part))
    if draw < mixture.pair or pairs:
        couples = [_couple(pool, rng, world, None, mixture, late) for _ in range(batch // 2)]
        return [example for couple in couples for example in _pairs(*couple, rng, mixture)]
    if draw < mixture.pair + mixture.turn_two:
        # Three times as many windows as needed, sorted by length: a run of neighbours wastes nothing on padding.
        looks = [_window(*_couple(pool, rng, world, None, mixture, late), rng, mixture) for _ in range(3 * batch // 2)]
        looks.sort(key=lambda look: look[2].end_s - look[2].start_s)
        start = int(rng.integers(len(looks) - batch // 2 + 1))
        return [example for look in looks[start : start + batch // 2] for example in _looks(*look, rng, mixture)]
    couples = [_couple(pool, rng, world, length, mixture, late) for _ in range(batch // 2)]
    return [_scan(clip, rng, mixture) for couple in couples for clip in couple]


def _couple(
    pool: ClipPool, rng: np.random.Generator, world: str, length: int | None, mixture: MixtureConfig, late: bool
) -> tuple[PoolClip, PoolClip]:
    normal, abnormal = pool.couple(rng, world, length, mixture.defect_weights, late)
    if mixture.mirrored and rng.random() < mixture.mirrored:
        normal, abnormal = mirrored(normal), mirrored(abnormal)
    if mixture.recoloured and rng.random() < mixture.recoloured:
        order = CHANNELS[int(rng.integers(len(CHANNELS)))]
        normal, abnormal = recoloured(normal, order), recoloured(abnormal, order)
    return normal, abnormal


def _scan(clip: PoolClip, rng: np.random.Generator, mixture: MixtureConfig) -> Example:
    """Turn 1: the whole clip."""
    frames = _shown(clip, clip.clock.indices_at(mixture.scan_fps), mixture.scan_fps, rng, mixture)
    answer = teacher.answer(
        clip.anomalies, number=1, frames=frames.indices, times_s=frames.times_s, places=_at(clip, frames)
    )
    return Example(turn_one_conversation(clip.prompt, frames, wording=mixture.wording), answer, clip)


def _at(clip: PoolClip, frames: Frames) -> list[str]:
    return [clip.places[index] for index in frames.indices]


def _pairs(normal: PoolClip, abnormal: PoolClip, rng: np.random.Generator, mixture: MixtureConfig) -> list[Example]:
    """Two neighbouring frames at turn 2's rate, from inside the defect and from a clip without one."""
    anomaly = abnormal.anomalies[int(rng.integers(len(abnormal.anomalies)))]
    step = max(1, round(abnormal.clock.fps / mixture.look_fps))
    last = len(abnormal.clock) - 1 - step
    inside = [frame for frame in sorted(anomaly.boxes) if frame % KEPT_EVERY == 0 and frame <= last]
    start = (
        inside[int(rng.integers(len(inside)))]
        if inside
        else min(sorted(anomaly.boxes)[0] // KEPT_EVERY * KEPT_EVERY, last)
    )
    other = min(start, len(normal.clock) - 1 - step)
    examples = []
    for clip, first in ((normal, other), (abnormal, start)):
        indices = (first, first + step)
        examples.append(_second_turn(clip, indices, _claim(normal, abnormal, clip, rng, mixture), rng, mixture))
    return examples


def _window(
    normal: PoolClip, abnormal: PoolClip, rng: np.random.Generator, mixture: MixtureConfig
) -> tuple[PoolClip, PoolClip, Window]:
    """A window on the abnormal clip's defect as turn 1 would name it: right, or (``hard_windows``)
    shifted or too wide.
    """
    times = [abnormal.clock.times_s[index] for index in abnormal.clock.indices_at(mixture.scan_fps)]
    touched = [shown_frames(anomaly.window, times) for anomaly in abnormal.anomalies]
    first, last = min(t[0] for t in touched), max(t[-1] for t in touched)
    if rng.random() < mixture.hard_windows:
        first, last = first + int(rng.integers(-2, 2)), last + int(rng.integers(-1, 3))
        first, last = min(max(first, 0), len(times) - 1), min(max(last, 0), len(times) - 1)
        first, last = min(first, last), max(first, last)
    return normal, abnormal, Window(times[first], times[last])


def _looks(
    normal: PoolClip, abnormal: PoolClip, window: Window, rng: np.random.Generator, mixture: MixtureConfig
) -> list[Example]:
    """Turn 2 on the abnormal clip's window, and on a window of the same length where nothing is
    wrong.
    """
    indices = _shown_of(abnormal, window, mixture)
    examples = [_second_turn(abnormal, indices, _claim(normal, abnormal, abnormal, rng, mixture), rng, mixture)]
    clip, length = normal, window.end_s - window.start_s
    times = [clip.clock.times_s[index] for index in clip.clock.indices_at(mixture.scan_fps)]
    starts = [t for t in times if t + length <= times[-1] + 1e-6]
    if rng.random() < 0.25:  # before or after a defect, on the clip that has one
        own = [abnormal.clock.times_s[index] for index in abnormal.clock.indices_at(mixture.scan_fps)]
        clear = [
            t
            for t in own
            if t + length <= own[-1] + 1e-6
            and not teacher.visible(
                abnormal.anomalies,
                [abnormal.clock.times_s[i] for i in _shown_of(abnormal, Window(t, t + length), mixture)],
            )
        ]
        if clear:
            clip, starts = abnormal, clear
    # Half of the time the very window in which the other clip is broken.
    same = [t for t in starts if abs(t - window.start_s) < 1e-6]
    start = same[0] if same and rng.random() < 0.5 else starts[int(rng.integers(len(starts)))]
    indices = _shown_of(clip, Window(start, start + length), mixture)
    examples.append(_second_turn(clip, indices, _claim(normal, abnormal, clip, rng, mixture), rng, mixture))
    return examples


def _shown_of(clip: PoolClip, window: Window, mixture: MixtureConfig) -> tuple[int, ...]:
    """The source frames that turn 2 sees of this window."""
    return clip.clock.indices_at(mixture.look_fps, window.widened(mixture.margin_s))


def _claim(
    normal: PoolClip, abnormal: PoolClip, shown: PoolClip, rng: np.random.Generator, mixture: MixtureConfig
) -> Anomaly:
    """What turn 1 suspects. On both clips of a couple it is drawn alike, so that the claim itself
    says nothing about the truth.
    """
    claim = abnormal.anomalies[int(rng.integers(len(abnormal.anomalies)))]
    if rng.random() < mixture.wrong_claim:
        claim = _CLAIMS[int(rng.integers(len(_CLAIMS)))]
    names = teacher.matching_entities(claim, shown.prompt)
    if teacher.who(claim) in names:
        return claim
    return teacher.about_entity(claim, *names[int(rng.integers(len(names)))])


def _second_turn(
    clip: PoolClip, indices: Sequence[int], claim: Anomaly, rng: np.random.Generator, mixture: MixtureConfig
) -> Example:
    frames = _shown(clip, indices, mixture.look_fps, rng, mixture)
    window = Window(frames.times_s[0], frames.times_s[-1])
    turn_one = Turn(1, "", frames.indices, "abnormal", (Anomaly(claim.type, window, claim.reason, claim.region),))
    answer = teacher.answer(
        clip.anomalies, number=2, frames=frames.indices, times_s=frames.times_s, places=_at(clip, frames)
    )
    return Example(turn_two_conversation(clip.prompt, frames, turn_one, wording=mixture.wording), answer, clip)


# ---- examples for the holistic judge -------------------------------------------------------------------------------


def unified_examples(
    pool: ClipPool, mixture: MixtureConfig, batch: int, *, seed: tuple[int, int], pairs: bool = False, part: int = 0
) -> list[Example]:
    """One batch for the holistic judge: sixteen frames, a prompt that may not fit, three grades.
    ``pairs`` has no meaning here.
    """
    rng = np.random.default_rng((*seed, 2, part) if part else seed)
    examples = []
    for number in range(batch):
        world, _ = pool.draw(rng, mixture)
        clip = pool.couple(rng, world)[number % 2]
        shown = parse_prompt(clip.prompt)
        asked = shown if rng.random() < 0.5 else _altered(shown, parse_prompt(pool.couple(rng, world)[0].prompt), rng)
        frames = clip.frames(sample_indices(len(clip.clock)), clip.clock.fps)
        wear = float(rng.choice([0.0, 0.4, 0.8, 1.2], p=[0.4, 0.25, 0.2, 0.15]))
        pixels = degrade(frames.pixels, rng, wear) if wear else frames.pixels
        frames = Frames(pixels, frames.indices, frames.times_s, frames.fps, frames.num_source_frames)
        text = fill_prompt(own_prompt(), asked.prompt)
        grade = teacher.grades(asked, shown, clip.anomalies, wear)
        answer = teacher.caption(shown, grade, wear) + write_axes(grade)
        examples.append(Example((Message("user", text, frames, as_images=True),), answer, clip))
    return examples


def _altered(spec: Spec, other: Spec, rng: np.random.Generator) -> Spec:
    """A prompt that does not quite fit: another colour, motion or place for the main actor, or
    another scene altogether.
    """
    draw = rng.random()
    actor = spec.actors[0]
    if draw < 0.3:
        options = [colour for colour in COLOURS if colour != actor.colour]
        actor = replace(actor, colour=options[int(rng.integers(len(options)))])
    elif draw < 0.5 and actor.motion != "into":
        options = [motion for motion in MOTIONS[actor.kind] if motion not in (actor.motion, "into")]
        actor = replace(actor, motion=options[int(rng.integers(len(options)))])
    elif draw < 0.6:
        return replace(spec, place=other.place)
    else:
        return other
    return replace(spec, actors=(actor, *spec.actors[1:]))


# ---- words for the tokenizer --------------------------------------------------------------------------------------


def tokenizer_texts(job: str, mixture: MixtureConfig, *, clips: int = 400, first_seed: int = 0) -> list[str]:
    """The texts from which the tokenizer's merges are counted: instructions and answers to the
    first seeds' clips, and time stamps.
    """
    texts = [f"<{tenth / 10:.1f} seconds>" for tenth in range(52)] * 20
    texts += [f'"status": "{word}", ' for word in ("normal", "abnormal")] * 50
    if job == "unified":
        texts += [own_prompt()] * 50
        texts += [
            "\n".join(f"{axis.capitalize()} Score (1-5): {half / 2:g}" for axis in AXES) for half in range(2, 11)
        ] * 20
        prompts = [
            make_clip(first_seed + number, world, anomalous=False).prompt
            for number in range(clips // 2)
            for world in (FULL, PLAYGROUND)
        ]
        ends = [
            f"{whole}, {worn}.\n" for whole in ("whole", "odd", "broken") for worn in ("clean", "soft", "worn", "poor")
        ]
        return texts + prompts + [f"Seen: {prompt}, {ends[at % len(ends)]}" for at, prompt in enumerate(prompts)]
    for number in range(clips):
        clip = make_clip(first_seed + number, FULL, anomalous=number % 4 != 0)
        video, all_places = clip.video(), teacher.places(clip.scene, clip.anomalies)
        for turn, indices in ((1, video.indices_at(mixture.scan_fps)), (2, video.indices_at(mixture.look_fps))):
            times = [video.times_s[index] for index in indices]
            frames = Frames(clip.pixels[:1], tuple(indices), tuple(times), mixture.scan_fps * turn, len(video))
            claim = Turn(1, "", tuple(indices), "abnormal", clip.anomalies)
            asked = (
                turn_one_conversation(clip.prompt, frames, wording=mixture.wording)
                if turn == 1
                else turn_two_conversation(clip.prompt, frames, claim, wording=mixture.wording)
            )
            where = [all_places[index] for index in indices]
            texts += [
                asked[0].text,
                teacher.answer(clip.anomalies, number=turn, frames=indices, times_s=times, places=where),
            ]
    return texts
