"""The size of a judge of the real architecture that is small enough to be made in a test (its parts are fixtures: judge_parts.py)."""

from cac_align.miniature.models.judge import JudgeSize

SMALL = JudgeSize(
    text_hidden=48,
    text_layers=2,
    text_intermediate=64,
    vision_hidden=32,
    vision_depth=2,
    vision_intermediate=48,
    deepstack=(0,),
    num_merges=500,
)
