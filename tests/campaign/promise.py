"""What a promise is, and how cases are put to it."""

from __future__ import annotations

import pickle
import resource
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

MAX_RSS_BYTES = 2 * 2**30
_FAMILIES = ("containers", "inputs", "answers", "wire", "service")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Promise:
    """One row of the table: a sentence, how its inputs are drawn, and the check that raises where it does not hold."""

    name: str
    sentence: str
    # Makes what all cases share, once per process; receives an empty folder.
    prepare: Callable[[Path], Any]
    # Values that can be pickled: a failed one is stored.
    strategy: st.SearchStrategy[Any]
    # Receives what ``prepare`` made and one value; raises anything where the promise is broken.
    check: Callable[[Any, Any], None]
    # Its share of the cases of all promises.
    weight: float = 1.0


class Broken(Exception):
    """The promise does not hold."""


class _TimeIsUp(KeyboardInterrupt):
    """Ends hypothesis, which passes this class on."""


def refused(call: Callable[..., Result], *args: Any, **kwargs: Any) -> Result | None:
    """What the call returns, or None where it is refused by a ValueError that says something."""
    try:
        return call(*args, **kwargs)
    except ValueError as error:
        if type(error) is not ValueError or len(str(error)) < 15:
            raise Broken(f"an unclear refusal, {type(error).__name__}: {error}") from error
        return None


def all_promises() -> dict[str, Promise]:
    """Every promise about inputs, by name."""
    found = [promise for family in _FAMILIES for promise in import_module(f"tests.campaign.{family}").PROMISES]
    return {promise.name: promise for promise in found}


def put(
    promise: Promise, first_seed: int, cases: int, seconds: float, report: Callable[[dict[str, Any]], None]
) -> None:
    """Put up to ``cases`` drawn values to a promise, for at most ``seconds``; ``report`` is told of each."""
    with tempfile.TemporaryDirectory() as folder:
        context = promise.prepare(Path(folder))
        until = time.monotonic() + seconds

        @seed(first_seed)
        @settings(
            max_examples=cases,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
        )
        @given(promise.strategy)
        def one(value: Any) -> None:
            if time.monotonic() > until:
                raise _TimeIsUp
            report({"begin": pickle.dumps(value).hex()})
            began = time.monotonic()
            why = failure_of(promise, context, value)
            report({"end": why, "seconds": time.monotonic() - began, "bytes": most_memory_bytes()})

        try:
            one()
        except _TimeIsUp:
            pass
        finally:
            if hasattr(context, "close"):
                context.close()


def failure_of(promise: Promise, context: Any, value: Any) -> str | None:
    """Why the promise does not hold for this value; None where it holds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            promise.check(context, value)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "cac_align/" in frame.filename]
        place = f" at cac_align/{ours[-1].filename.rsplit('cac_align/', 1)[1]}:{ours[-1].lineno}" if ours else ""
        return f"{type(error).__name__}{place}: {str(error)[:300]}"
    rss = most_memory_bytes()
    return f"MEMORY: {rss / 2**30:.1f} GB" if rss > MAX_RSS_BYTES else None


def most_memory_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
