"""RemoteReward: our service as a Reward; it sends only the frames the reward samples, retries, and never hangs.

prompts, videos → frames by the service's plan → JPEG → POST /v1/score (several in flight, back-off) → list[Score]

Whatever goes wrong for a video (service down, slow, overloaded, garbage, gone mid-request) ends within ``timeout_s`` of the call
as ``Score.missing`` with the reason. Wrong use (unknown reward name, refused token) is a ``ValueError``: it will not mend itself.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from cac_align.core.video import Video
from cac_align.rewards.reward import Score, check_pairs
from cac_align.serving.wire import (
    JPEG_QUALITY,
    PACKED,
    FramePlan,
    Health,
    Item,
    ScoreRequest,
    ScoreResponse,
    ScoreResult,
    VideoPart,
    file_part,
    frames_part,
    pack,
    path_part,
)
from cac_align.vlm.protocol import unidentified

_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_BACKOFF_S = (
    0.25,
    8.0,
)  # first and longest pause; doubled each time, with jitter so that clients do not come back together


class _Failed(Exception):
    """This video gets no score; the text says why."""


@dataclass(frozen=True)
class _Learned:
    """What /health said when it was first asked."""

    name: str
    provenance: Mapping[str, str]
    plan: FramePlan | None


class RemoteReward:
    """A reward behind our service; itself a ``Reward``: thread-safe and picklable.

    url: the service, e.g. "http://127.0.0.1:8000". reward: which of its rewards; None for its whole one. token: where it asks for one.
    timeout_s: the longest one call may take, everything included. retries: per video, within that time. in_flight: requests at once.
    send: "frames" (JPEG of the frames the reward samples), "file" (the encoded file) or "path" (a path on a shared disk);
    videos that are pixels are always sent as frames. quality: JPEG quality.
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
        in_flight: int = 8,
        send: Literal["frames", "file", "path"] = "frames",
        quality: int = JPEG_QUALITY,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, received {url!r}")
        if not timeout_s > 0 or retries < 0 or in_flight < 1 or not 1 <= quality <= 100:
            raise ValueError(
                f"expected timeout_s > 0, retries >= 0, in_flight >= 1, quality in [1, 100]; received {timeout_s}, {retries}, "
                f"{in_flight}, {quality}"
            )
        if send not in ("frames", "file", "path"):
            raise ValueError(f"send must be 'frames', 'file' or 'path', received {send!r}")
        self.url, self.reward, self.token = url.rstrip("/"), reward, token
        self.timeout_s, self.retries, self.in_flight, self.send, self.quality = (
            timeout_s,
            retries,
            in_flight,
            send,
            quality,
        )
        self._lock = threading.Lock()
        self._http: httpx.Client | None = None
        self._learned: _Learned | None = None
        self._send_all = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (self.url, self.reward, self._options()))

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("token", "timeout_s", "retries", "in_flight", "send", "quality")}

    @property
    def name(self) -> str:
        return self._ask_health(time.monotonic() + self.timeout_s).name

    @property
    def provenance(self) -> Mapping[str, str]:
        """The service's provenance for this reward, and how pixels travel (those of a video without a file always as JPEG).

        Raises ``ValueError`` when the service cannot be asked, or cannot itself ask which checkpoint its judge runs.
        """
        learned = self._ask_health(time.monotonic() + self.timeout_s)
        if unidentified(learned.provenance):
            raise ValueError(
                f"service {self.url}: its judge cannot be asked which checkpoint it runs; start that server first"
            )
        jpeg = f"jpeg quality {self.quality}"
        return {**learned.provenance, "wire": jpeg if self.send == "frames" else f"{self.send}, pixels as {jpeg}"}

    def health(self) -> Health:
        """What the service says about itself now. Raises ``ValueError`` when it cannot be asked within ``timeout_s``."""
        try:
            return self._get_health(time.monotonic() + self.timeout_s)
        except _Failed as error:
            raise ValueError(f"service {self.url}: {error}") from error

    def __call__(self, prompts: Sequence[str], videos: Sequence[Video]) -> list[Score]:
        """One Score per video, in order, within ``timeout_s``.

        Raises ``ValueError`` when ``prompts`` and ``videos`` differ in length, the service does not know the reward, or refuses us.
        """
        check_pairs(prompts, videos)
        if not videos:
            return []
        deadline = time.monotonic() + self.timeout_s
        with ThreadPoolExecutor(min(self.in_flight, len(videos)), thread_name_prefix="cac-align-client") as pool:
            return list(pool.map(lambda pair: self._score(*pair, deadline), zip(prompts, videos, strict=True)))

    # ---- one video -----------------------------------------------------------------------------------------------

    def _score(self, prompt: str, video: Video, deadline: float) -> Score:
        try:
            plan = self._learn(deadline).plan
            result = self._ask(prompt, self._part(video, None if self._send_all else plan), deadline)
            if result.unsent:
                self._send_all = True  # the reward samples other frames than its plan says: from now on send everything
                result = self._ask(prompt, self._part(video, None), deadline)
            return result.opened()
        except _Failed as error:
            return Score.missing(f"service {self.url}: {error}")

    def _part(self, video: Video, plan: FramePlan | None) -> VideoPart:
        try:
            if self.send != "frames" and video.path is not None:
                return path_part(video) if self.send == "path" else file_part(video)
            indices = tuple(range(len(video))) if plan is None else plan.indices(video)
            return frames_part(video, indices, quality=self.quality)
        except ValueError as error:
            raise _Failed(f"not sent: {error}") from error

    def _ask(self, prompt: str, part: VideoPart, deadline: float) -> ScoreResult:
        request = ScoreRequest(items=(Item(prompt=prompt, video=part),), reward=self.reward)
        answer = self._request("POST", "/v1/score", deadline, pack(request))
        try:
            response = ScoreResponse.model_validate_json(answer)
            if len(response.scores) != 1:
                raise ValueError(f"{len(response.scores)} scores for one video")
            response.scores[0].opened()
        except ValueError as error:
            raise _Failed(f"answered garbage: {str(error)[:200]}") from error
        if response.scores[0].score is not None and response.provenance != dict(self._learn(deadline).provenance):
            # Scores of two models in one run would be compared with each other: nobody could tell from the numbers.
            raise _Failed(
                "the service now scores with another reward than when this run began; restart the run, or the service as it was"
            )
        return response.scores[0]

    # ---- HTTP ----------------------------------------------------------------------------------------------------

    def _learn(self, deadline: float) -> _Learned:
        with self._lock:
            known = self._learned
        if known is None:
            health = self._get_health(deadline)
            if not health.rewards:
                raise ValueError(
                    f"{self.url} tells us nothing but its status; pass token=, the one the service was started with"
                )
            name = self.reward or health.default
            if name not in health.rewards:
                raise ValueError(
                    f"{self.url} serves {', '.join(health.rewards) or 'no reward'}; received reward {name!r}"
                )
            known = _Learned(name, health.provenances.get(name, {}), health.frame_plans.get(name))
            if not unidentified(known.provenance):  # else its judge is not ready: asked again next time
                with self._lock:
                    self._learned = known
        return known

    def _ask_health(self, deadline: float) -> _Learned:
        try:
            return self._learn(deadline)
        except _Failed as error:
            raise ValueError(f"service {self.url}: {error}") from error

    def _get_health(self, deadline: float) -> Health:
        answer = self._request("GET", "/health", deadline)
        try:
            return Health.model_validate_json(answer)
        except ValueError as error:
            raise _Failed(f"/health answered garbage: {str(error)[:200]}") from error

    def _client(self) -> httpx.Client:
        with self._lock:
            if self._http is None:
                headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
                # trust_env off: a company proxy must not swallow calls to a machine next door.
                limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.in_flight)
                self._http = httpx.Client(headers=headers, limits=limits, trust_env=False)
            return self._http

    def _request(self, method: str, path: str, deadline: float, body: bytes | None = None) -> bytes:
        """The answer's body. Retries what may pass; raises ``_Failed`` when time or retries are used up."""
        reason = "no time left"
        for attempt in range(self.retries + 1):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise _Failed(f"timed out after {self.timeout_s:g} s: {reason}")
            pause_s = min(_BACKOFF_S[0] * 2**attempt, _BACKOFF_S[1]) * random.uniform(0.5, 1.5)
            try:
                answer = self._bounded(method, path, body, left_s)
            except httpx.RequestError as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if answer.status_code == 200:
                    return answer.content
                reason = f"HTTP {answer.status_code}: {answer.text[:200]}"
                if answer.status_code in (401, 403):
                    raise ValueError(
                        f"{self.url} refused us (HTTP {answer.status_code}); pass token=, the one the service was started with"
                    )
                if answer.status_code not in _RETRIED:
                    raise _Failed(reason)
                pause_s = max(pause_s, _retry_after_s(answer.headers.get("Retry-After")))
            if attempt < self.retries:
                time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
        raise _Failed(f"gave up after {self.retries + 1} tries: {reason}")

    def _bounded(self, method: str, path: str, body: bytes | None, left_s: float) -> httpx.Response:
        """One request that ends within ``left_s``, even if the other side drips its answer byte by byte."""
        ends = time.monotonic() + left_s
        headers = {"Content-Type": PACKED} if body is not None else None
        timeout = httpx.Timeout(
            left_s, connect=min(left_s, 10.0)
        )  # httpx bounds each wait, not their sum: hence the loop below
        with self._client().stream(method, self.url + path, content=body, headers=headers, timeout=timeout) as answer:
            content = bytearray()
            for chunk in answer.iter_bytes():
                content += chunk
                if time.monotonic() > ends:
                    raise httpx.ReadTimeout("the answer did not end in time")
            return httpx.Response(
                answer.status_code,
                headers={"Retry-After": answer.headers.get("Retry-After", "")},
                content=bytes(content),
            )


def _retry_after_s(value: str | None) -> float:
    """Seconds of a Retry-After header; 0 for none and for dates, which our service never sends."""
    return float(value) if value and value.isdigit() else 0.0


def _rebuild(url: str, reward: str | None, options: dict[str, Any]) -> RemoteReward:
    return RemoteReward(url, reward, **options)
