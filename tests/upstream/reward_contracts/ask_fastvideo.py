"""FastVideo PromptRL's reward service around our judge, asked by its own HTTP client from several threads."""

import os
import sys
import threading
import time
from types import ModuleType

from cac_align.core.encoding import write_mp4
from tests.support.hosting import clip
from tests.upstream.reward_contracts import tell

url, home = sys.argv[1:]
os.environ["CAC_ALIGN_REWARD"] = url
sys.path.insert(0, home)
# The packages' __init__ files import CUDA kernels and trainers; the reward modules need the logger only.
for name in ("fastvideo", "fastvideo.train", "fastvideo.train.methods", "fastvideo.train.methods.rl"):
    package = ModuleType(name)
    package.__path__ = [os.path.join(home, *name.split("."))]
    sys.modules[name] = package
prompt_rl = ModuleType("fastvideo.train.methods.rl.promptrl")
prompt_rl.__path__ = [os.path.join(home, "fastvideo/train/methods/rl/promptrl")]
sys.modules[prompt_rl.__name__] = prompt_rl
import logging  # noqa: E402

logger = ModuleType("fastvideo.logger")
logger.init_logger = logging.getLogger  # pyright: ignore[reportAttributeAccessIssue]
sys.modules["fastvideo.logger"] = logger

from fastvideo.train.methods.rl.promptrl.rewards import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    HttpRewardProvider,
    RewardSample,
    RewardServiceError,
)

from cac_align.plugins.fastvideo import main  # noqa: E402

PORT = 8917
threading.Thread(target=main, args=(["--port", str(PORT)],), daemon=True).start()
provider = HttpRewardProvider(f"http://127.0.0.1:{PORT}", retries=0, timeout_sec=60)
ends = time.monotonic() + 60
while not provider.health() and time.monotonic() < ends:
    time.sleep(0.1)


def sample(group: str, slot: int, size: int, data: bytes, fps: int = 16) -> RewardSample:
    return RewardSample(group, group, f"slot-{slot}", size, "a red ball", "tag", fps, data)


def mp4(level: int) -> bytes:
    write_mp4("/tmp/cac_align_upstream.mp4", clip(level), 16)
    with open("/tmp/cac_align_upstream.mp4", "rb") as file:
        return file.read()


bright, dark = mp4(240), mp4(90)
group = provider.score([sample("g1", slot, 3, data) for slot, data in enumerate((bright, dark, b"broken"))])
alone = provider.score([sample("v1", 0, 1, bright)])
failures = []
for name, data, fps in (("g2", b"broken", 16), ("g3", bright, 24)):
    try:
        provider.score([sample(name, slot, 2, data, fps) for slot in range(2)])
    except RewardServiceError as error:
        failures.append(str(error))
tell(group=[result.score for result in group], alone=[result.score for result in alone], failures=failures)
