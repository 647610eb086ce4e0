"""A judge of the real architecture, small enough to be made in a test, with the tokenizer of its lessons."""

from functools import cache

from cac_align.miniature.judge import JudgeSize, build_tokenizer
from cac_align.miniature.lessons import lesson_texts
from cac_align.miniature.pool import LessonPlan

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


@cache
def texts():
    return lesson_texts("cac", LessonPlan(), clips=16)


@cache
def tokenizer():
    return build_tokenizer(texts(), 600)
