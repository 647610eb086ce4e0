"""Best-of-5 around any generator: a callable (prompt, seed) -> Video, and any reward.

python examples/best_of_five.py
"""

from pathlib import Path
from tempfile import mkdtemp

from cac_align import CaC, UnifiedReward, best_of_n, combine
from cac_align.miniature.world.settings import PLAYGROUND
from cac_align.miniature.world.world import make_clip

# The mean of (UnifiedReward - 1) / 4 and CaC.
reward = combine({"unified": UnifiedReward.miniature(), "cac": CaC.miniature()}, normalise="range")


def generate(prompt: str, seed: int):
    """Stands for your model: renders clips of the miniature's world, two in five of them anomalous."""
    return make_clip(2_100_000 + seed, PLAYGROUND).video()


out = Path(mkdtemp())
prompt = make_clip(2_100_000, PLAYGROUND).prompt
(selection,) = best_of_n([prompt], generate, reward, n=5, out=out)
print(selection.reason)
print("scores:", [round(score.value, 3) if score.scored else score.error for score in selection.scores])
print("videos, ledger and selection are in", out)
