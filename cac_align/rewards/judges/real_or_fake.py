"""What the detectors Skyra and VideoVeritas share: the verdict "real" or "fake", and P(real).

answer → ``read_real_or_fake`` → "real" | "fake";  probabilities of the words after ``<answer>`` → ``p_real``

A detector says whether a video was filmed or generated. All videos of a generator are generated, so its verdict
is no verdict about anomalies; as a reward it says how far a video passes for a filmed one.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from cac_align.core.text import quoted_excerpt
from cac_align.vlm.protocol import Readout, Reply

_ANSWER = re.compile(r"<answer>([^<]*)</answer>", re.IGNORECASE)
_BEFORE_WORD = re.compile(r"<answer>\s{0,20}(?=(?:real|fake)\b)", re.IGNORECASE)
_FORMS = {"real": ("Real", "real"), "fake": ("Fake", "fake")}
# Of P(real) + P(fake): below it the model wanted to write something else; above it the numbers contradict each other.
_LEAST_MASS, _MOST_MASS = 0.01, 1.001
# Log-odds against the written verdict up to this are rounding.
_ROUNDING = 0.05


def read_real_or_fake(text: str) -> Literal["real", "fake"]:
    """The one word inside ``<answer>``. Raises ``ValueError`` where there is none, another text, or two verdicts."""
    answers = {answer.strip().rstrip(".").lower() for answer in _ANSWER.findall(text)}
    if answers == {"real"}:
        return "real"
    if answers == {"fake"}:
        return "fake"
    raise ValueError(f"no single <answer>Real</answer> or <answer>Fake</answer> in the answer {quoted_excerpt(text)}")


def _after_answer(text: str) -> int | None:
    return max((match.end() for match in _BEFORE_WORD.finditer(text)), default=None)


VERDICT = Readout(tuple(form for forms in _FORMS.values() for form in forms), _after_answer)
"""The readout for ``p_real``: the two words in both spellings."""


def p_real(reply: Reply, verdict: Literal["real", "fake"]) -> tuple[float, dict[str, float]]:
    """P(real) / (P(real) + P(fake)) at the verdict, and the probabilities; ``p_…_is_bound`` is 1 where a server gave
    only an upper bound.

    A word's spelling that is only bounded is left out where another spelling of the word is known. Raises
    ``ValueError`` where the backend gave no probabilities, or they contradict the written verdict.
    """
    if reply.log_p is None:
        raise ValueError(f"no probability of the verdict: {reply.readout_error or 'the model gave no log-probability'}")
    p = {form: math.exp(reply.log_p[form]) for form in VERDICT.words}
    known = {word: [p[form] for form in forms if form not in reply.bounded] for word, forms in _FORMS.items()}
    rest = max(1 - math.fsum(p for each in known.values() for p in each), 0.0)
    found, bounds = {}, {}
    for word, forms in _FORMS.items():
        if known[word]:
            found[f"p_{word}"] = math.fsum(known[word])
        else:
            found[f"p_{word}"] = min(math.fsum(p[form] for form in forms), rest)
            bounds[f"p_{word}_is_bound"] = 1.0
    real, fake = found["p_real"], found["p_fake"]
    if len(bounds) == len(found) or not _LEAST_MASS <= real + fake <= _MOST_MASS:
        raise ValueError(f"P(real) + P(fake) is {real + fake:.3g}, expected {_LEAST_MASS:g} to 1, one of them known")
    value = real / (real + fake)
    against = 1 - value if verdict == "real" else value
    if against > 1 / (1 + math.exp(-_ROUNDING)):
        raise ValueError(f"the answer says {verdict}, but P(real) is {real:.3g} and P(fake) {fake:.3g}")
    return value, found | bounds
