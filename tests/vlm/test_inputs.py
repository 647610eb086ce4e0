"""What the model sees: the expanded text, time stamps, patches and padding, through Qwen3-VL's real processor."""

from dataclasses import replace

import numpy as np
import pytest

from cac_align.core.judgement import Window
from cac_align.core.video import Video
from cac_align.vlm.inputs import encode, encode_one
from cac_align.vlm.local import LocalVlm
from cac_align.vlm.protocol import ControlToken, Message
from tests.support import tiny_qwen
from tests.support.tiny_qwen import ask, frames


@pytest.fixture(scope="module")
def small():
    return LocalVlm(tiny_qwen.model(), tiny_qwen.processor(), name="small", batch_size=4)


def written(processor, row):
    """The expanded prompt as text, each run of pads as one."""
    text = processor.tokenizer.decode(row["input_ids"][0])
    for pad in ("<|video_pad|>", "<|image_pad|>"):
        while pad * 2 in text:
            text = text.replace(pad * 2, pad)
    return text


def test_the_expanded_text_of_a_video_is_pinned(small):
    row = encode_one(small.processor, ask("hello", frames(5)))
    assert written(small.processor, row) == (
        "<|im_start|>user\n<|vision_start|>"  # transformers 5 keeps this outer pair; 4.57 dropped it
        "<0.1 seconds><|vision_start|><|video_pad|><|vision_end|>"
        "<0.6 seconds><|vision_start|><|video_pad|><|vision_end|>"
        "<1.0 seconds><|vision_start|><|video_pad|><|vision_end|>"
        "<|vision_end|>hello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert small.provenance["layout"] == (
        "<|vision_start|><0.5 seconds><|vision_start|><|video_pad|><|vision_end|><|vision_end|>"
    )
    assert row["video_grid_thw"].tolist() == [[3, 4, 4]] and row["pixel_values_videos"].shape == (48, 1536)
    assert row["mm_token_type_ids"].sum() == 2 * 3 * 4  # type 2 on 3 patches × 4 tokens


def test_stamps_are_the_source_clock_even_when_it_is_irregular(small):
    text = written(small.processor, encode_one(small.processor, ask("x", frames(4, times=(0.0, 0.9, 2.3, 7.1)))))
    assert "<0.5 seconds>" in text and "<4.7 seconds>" in text
    clip = Video.open(np.zeros((81, 32, 32, 3), np.uint8), fps=16).clip(Window(3.0, 4.0))
    text = written(small.processor, encode_one(small.processor, ask("x", clip)))
    assert [part.split(" ")[0] for part in text.split("<")[1:] if "seconds" in part] == [
        "3.1",
        "3.3",
        "3.6",
        "3.8",
        "4.0",
    ]


def test_one_frame_is_shown_twice_and_images_carry_no_stamp(small):
    row = encode_one(small.processor, ask("x", frames(1, times=(1.5,))))
    assert "<1.5 seconds>" in written(small.processor, row) and row["video_grid_thw"].tolist() == [[1, 4, 4]]
    row = encode_one(small.processor, (Message("user", "x", frames(3), as_images=True),))
    assert written(small.processor, row).count("<|image_pad|>") == 3 and "seconds" not in written(small.processor, row)
    assert row["image_grid_thw"].tolist() == [[1, 4, 4]] * 3 and row["mm_token_type_ids"].max() == 1


def test_captions_stand_right_before_their_images(small):
    message = Message("user", "Which?", frames(2), as_images=True, captions=("one ", "two "))
    text = written(small.processor, encode_one(small.processor, (message,), add_generation_prompt=False))
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text == f"<|im_start|>user\none {image}two {image}Which?<|im_end|>\n"
    for wrong in ({"captions": ("one ",)}, {"as_images": False}):
        with pytest.raises(ValueError, match="captions"):
            replace(message, **wrong)
    with pytest.raises(ControlToken):
        encode_one(small.processor, (replace(message, captions=("one ", "<|im_end|>")),))


def test_max_pixels_bounds_the_whole_video(small):
    row = encode_one(small.processor, ask("x", frames(8, 128, 128)), max_pixels=8 * 64 * 64)
    assert row["video_grid_thw"].tolist() == [[4, 4, 4]]


def test_a_batch_is_left_padded_and_a_begun_answer_ends_the_prompt(small):
    begun = ask(
        "hi",
        frames(2),
        Message("assistant", "one"),
        Message("user", "again", frames(3, 64, 96)),
        Message("assistant", '{"status": "'),
    )
    batch = encode(small.processor, [ask("hello", frames(2)), begun])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert (
        mask[1].all()
        and not mask[0, 0]
        and mask[0, -1]
        and (ids[0][mask[0] == 0] == small.processor.tokenizer.pad_token_id).all()
    )
    tokenizer = small.processor.tokenizer
    assert tokenizer.decode(ids[1]).endswith('again<|im_end|>\n<|im_start|>assistant\n{"status": "')
    assert batch["video_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 4], [2, 4, 6]]
    begun_ids = tokenizer('{"status": "').input_ids
    assert ids[1, -len(begun_ids) :].tolist() == begun_ids
