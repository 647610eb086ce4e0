"""GenRL's ``multi_score`` and ``load_reward_fn``."""

import os
import sys

import torch
import transformers.modeling_utils

from tests.upstream.reward_contracts import empty, tell, videos

url, home = sys.argv[1:]
os.environ["CAC_ALIGN_REWARD"] = url
sys.path.insert(0, home)
# Its built-in rewards import VideoAlign, HPSv3 and PaddleOCR; its transformers is 4.
names = ("hpsv3_general", "hpsv3_percentile", "video_ocr", "videoalign_mq", "videoalign_ta")
empty("genrl.reward", *(f"{name}_score" for name in names))
empty("genrl.reward.hpsv3", "set_hpsv3_device")
empty("genrl.reward.videoalign", "set_videoalign_device")
transformers.modeling_utils.no_init_weights = None  # pyright: ignore[reportAttributeAccessIssue]
from genrl.rewards import multi_score  # noqa: E402 # pyright: ignore[reportMissingImports]

cpu, module = torch.device("cpu"), "cac_align.plugins.genrl"
weights = {"cac": 0.5, "unifiedreward_video": 0.5}
trained, _ = multi_score(cpu, weights, module, return_raw_scores=True)(videos(240, 90), ["a", "b"], [{}, {}], True)
evaluated, _ = multi_score(cpu, {"cac_unified_eval": 1.0}, module)(videos(240), ["a"], [{}], False)
without, _ = multi_score(cpu, {"cac_unified": 1.0}, None)(videos(240), ["a"], [{}])
try:
    multi_score(cpu, {"cac_unifed": 1.0}, module)
    unknown = ""
except ValueError as error:
    unknown = str(error)
tell(
    trained={name: values.tolist() for name, values in trained.items()},
    evaluated=evaluated["avg"].tolist(),
    without_module=without["avg"].tolist(),
    unknown=unknown,
)
