"""``RemoteReward``: our service as a reward.

prompts, videos → frames by the service's plan → JPEG → POST /v1/score (several at once) → list[Score]

Whatever goes wrong for a video (a service that is down, slow, overloaded or answers nonsense) ends
within ``timeout_s`` of the call as ``Score.missing`` with the reason. Wrong use (an unknown reward
name, a refused token) is a ``ValueError``, because trying again does not help.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from cac_align.core.video import Video, VideoInput, as_pairs
from cac_align.rewards.reward import Score
from cac_align.serving.frame_plan import FramePlan
from cac_align.serving.video_parts import JPEG_QUALITY, file_part, frames_part, path_part
from cac_align.serving.wire import (
    PACKED,
    Health,
    ScoreItem,
    ScoreRequest,
    ScoreResult,
    VideoPart,
    pack,
    read_health,
    read_score_response,
)
from cac_align.vlm.protocol import unidentified

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
# The longest pause between tries. Each is twice the one before, with jitter, so that clients do not come back all at
# once.
_LONGEST_PAUSE_S = 8.0


class _NoScore(Exception):
    """There is no score for this video; the text says why."""


@dataclass(frozen=True)
class _ServedReward:
    """What the service said about the reward when it was first asked."""

    name: str
    provenance: Mapping[str, str]
    plan: FramePlan | None
    bounds: tuple[float, float] | None


class RemoteReward:
    """A reward behind our service. It is itself a ``Reward``, thread-safe and picklable.

    url: the service, e.g. "http://127.0.0.1:8000". reward: which of its rewards; None for its whole
    one. token: the service's token, where it demands one. timeout_s: how many seconds one call may
    take, everything included. retries: how often a request is sent again, within that time.
    backoff_s: seconds before it is sent again for the first time; each later pause is twice as
    long, up to 8 s. in_flight: how many requests are sent at once. send: "frames" (JPEGs of the frames that the
    reward reads), "file" (the encoded file) or "path" (a
        path on a shared disk). Videos that are not files are always sent as frames.
    quality: of the JPEGs, in [1, 100].

    Raises ``ValueError`` when an argument is out of range.
    """

    def __init__(
        self,
        url: str,
        reward: str | None = None,
        *,
        token: str | None = None,
        timeout_s: float = 600.0,
        retries: int = 5,
        backoff_s: float = 0.25,
        in_flight: int = 8,
        send: Literal["frames", "file", "path"] = "frames",
        quality: int = JPEG_QUALITY,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, received {url!r}")
        if not timeout_s > 0 or retries < 0 or not 0 <= backoff_s < 3600 or in_flight < 1 or not 1 <= quality <= 100:
            raise ValueError(
                f"expected timeout_s > 0, retries >= 0, backoff_s in [0, 3600), in_flight >= 1, quality in [1, 100]; "
                f"received {timeout_s}, {retries}, {backoff_s}, {in_flight}, {quality}"
            )
        if send not in ("frames", "file", "path"):
            raise ValueError(f"send must be 'frames', 'file' or 'path', received {send!r}")
        self.url, self.reward, self.token = url.rstrip("/"), reward, token
        self.timeout_s, self.retries, self.backoff_s, self.in_flight = timeout_s, retries, backoff_s, in_flight
        self.send, self.quality = send, quality
        self._lock = threading.Lock()
        self._http: httpx.Client | None = None
        self._http_pid = 0
        self._served: _ServedReward | None = None
        self._send_all = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.url, self.reward, self._options()))

    def _options(self) -> dict[str, Any]:
        names = ("token", "timeout_s", "retries", "backoff_s", "in_flight", "send", "quality")
        return {name: getattr(self, name) for name in names}

    @property
    def name(self) -> str:
        return self._served_reward_or_error(time.monotonic() + self.timeout_s).name

    @property
    def provenance(self) -> Mapping[str, str]:
        """The service's provenance for this reward, and how pixels are sent.

        Raises ``ValueError`` when the service cannot be asked, or cannot itself ask which
        checkpoint its judge runs.
        """
        served = self._served_reward_or_error(time.monotonic() + self.timeout_s)
        if unidentified(served.provenance):
            raise ValueError(
                f"service {self.url}: its judge cannot be asked which checkpoint it runs; start that server first"
            )
        jpeg = f"jpeg quality {self.quality}"
        return {**served.provenance, "wire": jpeg if self.send == "frames" else f"{self.send}, pixels as {jpeg}"}

    def health(self) -> Health:
        """What the service says about itself now.

        Raises ``ValueError`` when it does not answer in time.
        """
        try:
            return self._get_health(time.monotonic() + self.timeout_s)
        except _NoScore as error:
            raise ValueError(f"service {self.url}: {error}") from error

    def __call__(self, prompts: str | Sequence[str], videos: VideoInput | Sequence[VideoInput]) -> list[Score]:
        """One Score per video, in order, within ``timeout_s``.

        Raises ``ValueError`` when ``prompts`` and ``videos`` differ in length, the service does not
        know the reward, or it refuses the token.
        """
        prompts, videos = as_pairs(prompts, videos)
        if not videos:
            return []
        deadline = time.monotonic() + self.timeout_s
        with ThreadPoolExecutor(min(self.in_flight, len(videos)), thread_name_prefix="cac-align-client") as pool:
            return list(pool.map(lambda prompt, video: self._score(prompt, video, deadline), prompts, videos))

    # ---- one video -----------------------------------------------------------------------------------------------

    def _score(self, prompt: str, video: Video, deadline: float) -> Score:
        try:
            plan = self._served_reward(deadline).plan
            result = self._request_score(prompt, self._part(video, None if self._send_all else plan), deadline)
            if result.missing_frames:
                self._send_all = True  # the reward reads other frames than its plan says
                result = self._request_score(prompt, self._part(video, None), deadline)
            return result.to_score()
        except _NoScore as error:
            return Score.missing(f"service {self.url}: {error}")

    def _part(self, video: Video, plan: FramePlan | None) -> VideoPart:
        try:
            if self.send != "frames" and video.path is not None:
                return path_part(video) if self.send == "path" else file_part(video)
            indices = tuple(range(len(video))) if plan is None else plan.indices(video)
            return frames_part(video, indices, quality=self.quality)
        except ValueError as error:
            raise _NoScore(f"not sent: {error}") from error

    def _request_score(self, prompt: str, part: VideoPart, deadline: float) -> ScoreResult:
        request = ScoreRequest(items=(ScoreItem(prompt=prompt, video=part),), reward=self.reward)
        answer = self._request("POST", "/v1/score", deadline, pack(request))
        try:
            response = read_score_response(answer)
            if len(response.scores) != 1:
                raise ValueError(f"{len(response.scores)} scores for one video")
            _check_score(response.scores[0].to_score(), self._served_reward(deadline).bounds)
        except ValueError as error:
            raise _NoScore(f"answered what is no score: {str(error)[:200]}") from error
        if response.scores[0].score is not None and response.provenance != dict(
            self._served_reward(deadline).provenance
        ):
            # Scores of two models in one run would be compared with each other, and the numbers would not show it.
            raise _NoScore(
                "the service now scores with another reward than when this run began; "
                "restart the run, or the service as it was"
            )
        return response.scores[0]

    # ---- HTTP ----------------------------------------------------------------------------------------------------

    def _served_reward(self, deadline: float) -> _ServedReward:
        with self._lock:
            known = self._served
        if known is None:
            health = self._get_health(deadline)
            if not health.rewards:
                raise ValueError(f"{self.url} says only its status; pass token=, the one the service was started with")
            name = self.reward or health.default
            if name not in health.rewards:
                raise ValueError(
                    f"{self.url} serves {', '.join(health.rewards) or 'no reward'}; received reward {name!r}"
                )
            known = _ServedReward(
                name, health.provenances.get(name, {}), health.frame_plans.get(name), health.bounds.get(name)
            )
            if not unidentified(known.provenance):  # otherwise its judge is not ready and is asked again next time
                with self._lock:
                    self._served = known
        return known

    def _served_reward_or_error(self, deadline: float) -> _ServedReward:
        try:
            return self._served_reward(deadline)
        except _NoScore as error:
            raise ValueError(f"service {self.url}: {error}") from error

    def _get_health(self, deadline: float) -> Health:
        answer = self._request("GET", "/health", deadline)
        try:
            return read_health(answer)
        except ValueError as error:
            raise _NoScore(f"/health answered what is no health message: {str(error)[:200]}") from error

    def _client(self) -> httpx.Client:
        with self._lock:
            # A fork has its parent's connections, on which it could read an answer to its parent.
            if self._http is None or self._http_pid != os.getpid():
                headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
                # trust_env=False: calls to a machine in the same network must not go through a proxy.
                limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.in_flight)
                self._http = httpx.Client(headers=headers, limits=limits, trust_env=False)
                self._http_pid = os.getpid()
            return self._http

    def _request(self, method: str, path: str, deadline: float, body: bytes | None = None) -> bytes:
        """The answer's body; failures that may pass are retried.

        Raises ``_NoScore`` when time or retries are used up, ``ValueError`` when the token is
        refused.
        """
        reason = "no time left"
        for attempt in range(self.retries + 1):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise _NoScore(f"timed out after {self.timeout_s:g} s: {reason}")
            pause_s = min(self.backoff_s * 2.0 ** min(attempt, 32), _LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)
            try:
                answer = self._send(method, path, body, left_s)
            except httpx.RequestError as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == 200:
                    return answer.content
                reason = f"HTTP {answer.status_code}: {answer.text[:200]}"
                if answer.status_code in (401, 403):
                    raise ValueError(
                        f"{self.url} refused this client (HTTP {answer.status_code}); "
                        "pass token=, the one the service was started with"
                    )
                if answer.status_code not in _RETRIED:
                    raise _NoScore(reason)
                pause_s = max(pause_s, _retry_after_s(answer.headers.get("Retry-After")))
            if attempt < self.retries:
                time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
        raise _NoScore(f"gave up after {self.retries + 1} tries: {reason}")

    def _send(self, method: str, path: str, body: bytes | None, left_s: float) -> httpx.Response:
        """Send one request; it ends within ``left_s`` even when the answer arrives byte by byte."""
        ends = time.monotonic() + left_s
        headers = {"Content-Type": PACKED} if body is not None else None
        timeout = httpx.Timeout(left_s, connect=min(left_s, 10.0))  # of each wait; the loop below limits their sum
        with self._client().stream(method, self.url + path, content=body, headers=headers, timeout=timeout) as answer:
            content = bytearray()
            for chunk in answer.iter_bytes():
                content += chunk
                if time.monotonic() > ends:
                    raise httpx.ReadTimeout("the answer did not end in time")
            if answer.status_code in (204, 304):  # a body sent all the same would be read as the next request's answer
                answer.extensions["network_stream"].close()
            return httpx.Response(
                answer.status_code,
                headers={"Retry-After": answer.headers.get("Retry-After", "")},
                content=bytes(content),
            )


_TOLERANCE = 1e-6


def _check_score(score: Score, bounds: tuple[float, float] | None) -> None:
    """Raise ``ValueError`` for a score outside its reward's bounds, or that is not the weighted mean of the
    normalised parts that a combination sends along.
    """
    if not score.scored:
        return
    if bounds is not None and not bounds[0] - _TOLERANCE <= score.value <= bounds[1] + _TOLERANCE:
        raise ValueError(f"score {score.value:g} lies outside the reward's bounds {bounds}")
    if not score.provenance.get("reward", "").startswith("combine "):
        return
    try:
        weights = json.loads(score.provenance["weights"])
        mean = math.fsum(weight * score.parts[f"normalised/{name}"] for name, weight in weights.items())
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"a combined score without its weighted parts: {error!r}") from error
    if not abs(mean - score.value) <= _TOLERANCE:
        raise ValueError(f"score {score.value:g} is not the weighted mean {mean:g} of its own parts")


def _retry_after_s(value: str | None) -> float:
    """Seconds of a Retry-After header; 0 for none and for dates, which our service never sends."""
    return float(value) if value and value.isdigit() else 0.0


def _rebuild(url: str, reward: str | None, options: dict[str, Any]) -> RemoteReward:
    return RemoteReward(url, reward, **options)
