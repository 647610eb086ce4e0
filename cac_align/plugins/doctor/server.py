"""Checks of a judge's server: what it must do for exact scores, tried with a synthetic clip in a few seconds.

URL, reward recipe → reachable, checkpoint, frames, time stamps, limits, schema, log-probabilities,
continuation → checks
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from cac_align.cac.judge_settings import FILE_NAME
from cac_align.cac.readout import STATUS_WORDS
from cac_align.cac.verdict_only import ANSWER_PREFIX, VERDICT_SCHEMA
from cac_align.core.video import Frames
from cac_align.plugins.doctor.checks import Check
from cac_align.vlm.protocol import Conversation, Message, Readout
from cac_align.vlm.server.reply import RequestFailed, served_names
from cac_align.vlm.server.server import ServerVlm

_NUM_FRAMES = 40  # more than the 32 that vLLM keeps unless it is told otherwise
_NUM_TIMED = 12
_QUESTION = "Is it fine?"
_TIMEOUT_S = 30.0
# Seconds for everything, as far as it is ours: the checkpoint's processor may be waited for until then.
_WITHIN_S = 9.0


def check_server(url: str, recipe: Path | None = None) -> Iterator[Check]:
    """The checks of the server at ``url``, as the recipe's component behind this URL asks it
    (None: as vLLM's defaults do).
    """
    began_s = time.monotonic()
    component = _component(url, recipe) if recipe is not None else None
    vlm = _connect(url, component)
    if (why := vlm.why_unreachable()) is not None:
        yield Check("server", False, why, why.split("; ", 1)[-1])
        return
    card = _card(vlm)
    root = str(card.get("root") or "")
    yield Check("server", True, f"{vlm.url} serves {vlm.model!r}, checkpoint {root or 'not named'}")
    yield from _check_length(card)
    processor = _LocalProcessor(root if vlm.frames == "video" else "")
    try:
        arrives = yield from _check_frames(vlm)
        if component is None or component.kind == "cac":
            conversation: Conversation = (Message("user", _QUESTION, _clip(4) if arrives else None),)
            yield from _check_schema(vlm, conversation)
            yield from _check_readout(vlm, conversation)
            yield from _check_settings(root, component)
        if arrives and vlm.frames == "video":
            yield processor.check(vlm, began_s + _WITHIN_S - time.monotonic())
    finally:
        processor.close()


def _component(url: str, recipe: Path) -> Any:
    """The recipe's component behind the URL. Raises ``ValueError`` when there is none."""
    from cac_align.config import read_recipe
    from cac_align.rewards.build import RewardRecipe

    read = read_recipe(RewardRecipe, recipe, section="reward")
    here = url.rstrip("/").removesuffix("/v1")
    for component in read.components.values():
        if component.model.rstrip("/").removesuffix("/v1") == here:
            return component
    servers = ", ".join(part.model for part in read.components.values() if part.model.startswith("http"))
    raise ValueError(f"{recipe} has no component behind {url}; its servers are {servers or 'none'}")


def _connect(url: str, component: Any) -> ServerVlm:
    options: dict[str, Any] = {"timeout_s": _TIMEOUT_S, "retries": 0}
    name = None
    if component is not None:
        import os

        options |= {
            key: getattr(component, key) for key in ("dialect", "frames", "tokenizer") if getattr(component, key)
        }
        name = component.served_model
        if component.api_key_env:
            options["api_key"] = os.environ.get(component.api_key_env)
    if name is None:
        try:
            names = served_names(httpx.get(f"{url.rstrip('/').removesuffix('/v1')}/v1/models", timeout=2.0))
        except httpx.HTTPError:
            names = []
        name = names[0] if names else "cac"
    return ServerVlm(url, name, **options)


def _card(vlm: ServerVlm) -> Mapping[str, Any]:
    try:
        cards = vlm._http().get(f"{vlm.url}/models", timeout=5.0).json()["data"]
        return next((card for card in cards if card.get("id") == vlm.model), {})
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return {}


def _check_length(card: Mapping[str, Any]) -> Iterator[Check]:
    length = card.get("max_model_len")
    if not isinstance(length, int):
        yield Check("length", None, "the server does not say how long a conversation may be")
    elif length < 16384:
        text = f"a conversation may have {length} tokens; 41 frames of 480×832 and an answer of 4096 need about 13,000"
        yield Check("length", None, text, "--max-model-len 32768 (less is enough for smaller frames)")
    else:
        yield Check("length", True, f"a conversation may have {length} tokens")


def _clip(num_frames: int, fps: float = 8.0, begin_s: float = 0.0) -> Frames:
    """Grey frames whose brightness grows, with their own clock, the first at ``begin_s``."""
    pixels = np.full((num_frames, 64, 64, 3), 64, np.uint8) + np.arange(num_frames, dtype=np.uint8)[:, None, None, None]
    first = round(2 * fps * begin_s)
    indices = tuple(range(first, first + 2 * num_frames, 2))
    return Frames(pixels, indices, tuple(index / (2 * fps) for index in indices), fps, first + 2 * num_frames)


def _prompt_tokens(vlm: ServerVlm, clips: Sequence[Frames | None]) -> list[int]:
    """How many tokens the server counts of each clip's request, all asked at once. Raises ``ValueError`` with what it
    says instead.
    """
    replies = vlm.answer([(Message("user", _QUESTION, frames),) for frames in clips], max_new_tokens=1)
    for reply in replies:
        if reply.error is not None:
            raise ValueError(reply.error)
    return [reply.num_prompt_tokens for reply in replies]


def _check_frames(vlm: ServerVlm) -> Iterator[Check]:
    """Whether every frame and every time stamp arrives; returns whether the server takes the frames at all."""
    name = "frames"
    try:
        clips = [None, _still(2), _still(4), _still(_NUM_FRAMES), _clip(_NUM_TIMED), _clip(_NUM_TIMED, begin_s=1000.0)]
        none, two, four, all_, near, far = _prompt_tokens(vlm, clips)
    except ValueError as error:
        fix = str(error).split("; ", 1)[1] if "; " in str(error) else ""
        yield Check(name, False, f"a clip was refused: {error}", fix)
        return False
    per_pair = four - two
    if vlm.frames == "video" and two > none:
        kept = 2 + 2 * (all_ - two) / per_pair if per_pair > 0 else 2
        if abs(kept - _NUM_FRAMES) > 0.5:
            text = f"of {_NUM_FRAMES} frames only {kept:.0f} arrive ({all_} tokens)"
            yield Check(name, False, text, '--media-io-kwargs \'{"video": {"num_frames": -1}}\'')
            return True
    if all_ <= none:
        yield Check(name, False, "the frames add no token to the prompt", "serve a vision-language model with video")
        return False
    how = "one video part" if vlm.frames == "video" else "images behind their time stamps"
    yield Check(name, True, f"all {_NUM_FRAMES} frames arrive as {how}, {per_pair} tokens per pair of 64×64 frames")
    if vlm.frames == "video":
        yield _check_times(vlm, far - near)
    return True


def _check_times(vlm: ServerVlm, found: int) -> Check:
    """Whether the frames' own times arrive: a clip that begins 1000 s later has longer time stamps.

    found: by how many tokens its prompt is longer.
    """
    name = "time stamps"
    try:
        lengths = [
            len(vlm._tokenize(_stamps(_clip(_NUM_TIMED, begin_s=begin_s)), stop=threading.Event()))
            for begin_s in (0.0, 1000.0)
        ]
    except RequestFailed as error:
        return Check(name, None, f"the server's tokenizer cannot be asked how long they are: {error}")
    expected = lengths[1] - lengths[0]
    if found == expected > 0:
        return Check(name, True, f"a clip that begins 1000 s later is {found} tokens longer, as its time stamps are")
    text = f"a clip that begins 1000 s later is {found} tokens longer, its time stamps are {expected}"
    return Check(name, False, text, "vLLM 0.32 or newer with --trust-request-mm-kwargs, or frames: images")


def _stamps(frames: Frames) -> str:
    """The time stamps that Qwen3-VL's processor writes for a clip, one per pair of frames."""
    middles = [(first + second) / 2 for first, second in zip(frames.times_s[::2], frames.times_s[1::2], strict=True)]
    return "<|vision_start|>".join(f"<{middle_s:.1f} seconds>" for middle_s in middles)


def _still(count: int) -> Frames:
    """Frames at one moment, so that every pair has the same time stamp and the same number of tokens."""
    return Frames(np.full((count, 64, 64, 3), 99, np.uint8), (0,) * count, (0.0,) * count, 8.0, count)


class _LocalProcessor:
    """The checkpoint's own processor in a process of its own, which loads torch and transformers while the server is
    asked. ``root``: the checkpoint's folder.
    """

    def __init__(self, root: str) -> None:
        here = Path(root, "config.json").is_file()
        code = f"import sys; from {__name__} import expected_tokens; print(expected_tokens(sys.argv[1]))"
        command = [sys.executable, "-c", code, root]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) if here else None

    def check(self, vlm: ServerVlm, timeout_s: float) -> Check:
        """The server's token count of a clip against the processor's, if that is there in time."""
        name = "processor"
        if self._process is None:
            text = "the checkpoint's folder is not on this machine, so its processor cannot be asked"
            return Check(name, None, text)
        try:
            printed = self._process.communicate(timeout=max(timeout_s, 0.01))[0]
            expected = int(printed)
        except subprocess.TimeoutExpired:
            return Check(name, None, "the checkpoint's processor takes longer to load here than this check waits")
        except ValueError:
            return Check(name, None, "the checkpoint's processor cannot be loaded here")
        finally:
            self.close()
        try:
            (found,) = _prompt_tokens(vlm, [_clip(_NUM_TIMED)])
        except ValueError as error:
            return Check(name, False, str(error))
        if found == expected:
            return Check(name, True, f"{found} tokens for {_NUM_TIMED} frames, as the checkpoint's processor gives")
        text = f"{found} tokens for {_NUM_TIMED} frames; the checkpoint's processor gives {expected}"
        return Check(name, False, text, "the same transformers on both sides; no --mm-processor-kwargs on the server")

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def expected_tokens(root: str) -> int:
    """How many tokens the processor of the checkpoint in folder ``root`` makes of a timed clip."""
    from transformers import AutoProcessor

    from cac_align.vlm.inputs import encode_one

    message = Message("user", _QUESTION, _clip(_NUM_TIMED))
    return encode_one(AutoProcessor.from_pretrained(root), (message,))["input_ids"].shape[1]


def _check_schema(vlm: ServerVlm, conversation: Conversation) -> Iterator[Check]:
    (reply,) = vlm.answer([conversation], max_new_tokens=32, schema=VERDICT_SCHEMA)
    try:
        held = reply.error is None and json.loads(reply.text)["status"] in ("normal", "abnormal")
    except (ValueError, KeyError, TypeError):
        held = False
    if held:
        yield Check("structured output", True, "an answer keeps to its JSON schema")
    else:
        text = f"an answer does not keep to its JSON schema: {reply.error or reply.text[:80]!r}"
        yield Check(
            "structured output", False, text, "constrained: false in the recipe (SGLang: --grammar-backend xgrammar)"
        )


def _check_readout(vlm: ServerVlm, conversation: Conversation) -> Iterator[Check]:
    if vlm.dialect == "openai":
        text = "probabilities are those of 20 tokens and upper bounds: confident verdicts cannot be ranked"
        yield Check("log-probabilities", None, text, "serve with vLLM (dialect: vllm)")
        return
    begun = (*conversation, Message("assistant", ANSWER_PREFIX))
    (reply,) = vlm.answer([begun], max_new_tokens=1)
    if reply.error is not None:
        yield Check(
            "continuation", False, f"an answer cannot be continued: {reply.error}", "dialect: openai in the recipe"
        )
        return
    yield Check("continuation", True, "a begun answer is continued")
    try:
        by_id = vlm._can_ask_by_id(threading.Event())
    except RequestFailed:
        by_id = False
    # By id a word of one letter does: it has no pieces to follow, and one request is enough.
    readout = Readout(("n",) if by_id else STATUS_WORDS, len)
    (reply,) = vlm.answer([begun], max_new_tokens=1, readout=readout)
    if reply.log_p is None:
        yield Check("log-probabilities", False, f"none: {reply.readout_error or reply.error}", "vLLM 0.32 or newer")
    elif by_id and not reply.bounded:
        yield Check("log-probabilities", True, "asked for by token id: verdicts are exact, however confident")
    else:
        text = "only the 20 likeliest tokens' are known, so a confident verdict's other word is an upper bound"
        fix = (
            "let the gateway pass /tokenize, or tokenizer: PATH in the recipe"
            if vlm.dialect == "vllm"
            else "serve with vLLM"
        )
        yield Check("log-probabilities", None, text, fix)


def _check_settings(root: str, component: Any) -> Iterator[Check]:
    """What the checkpoint's settings file demands and the recipe does not say."""
    from cac_align.cac.judge_settings import read_settings_file

    if not Path(root).is_dir():
        text = f"the checkpoint's {FILE_NAME} cannot be read from here; what it holds must stand in the recipe"
        yield Check(
            "settings", None, text, f"copy two_turn, temperature and threshold of its {FILE_NAME} into the recipe"
        )
        return
    content = read_settings_file(root)
    wanted = dict(content.get("two_turn", {}))
    if "temperature" in content:
        wanted["temperature"] = content["temperature"]
    missing = {
        key: value for key, value in wanted.items() if component is None or getattr(component, key, None) != value
    }
    if missing:
        lines = ", ".join(f"{key}: {value}" for key, value in missing.items())
        yield Check(
            "settings", None if component is None else False, f"the checkpoint's {FILE_NAME} asks for {lines}", lines
        )
    else:
        yield Check("settings", True, f"the recipe says what the checkpoint's {FILE_NAME} asks for")
