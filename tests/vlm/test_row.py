"""What prompts may share: the common beginning of two prompts, the pixels after it, and groups for one prefill."""

import torch

from cac_align.vlm.engine.row import PREFILL_TOKENS, Prompt, Row, common_tokens, group_for_prefill, new_pixels


def prompt(ids, types=None, seen=(), **inputs):
    types = [0] * len(ids) if types is None else types
    rows = {"input_ids": torch.tensor([ids]), "mm_token_type_ids": torch.tensor([types]), **inputs}
    return Prompt(rows, tuple(seen), "", 9)


def finished(asked, tokens):
    return Row(asked, None, length=asked.length + len(tokens) - 1, tokens=list(tokens))  # the last token was never fed


def test_the_common_part_ends_where_the_texts_part_and_leaves_one_token_to_compute():
    row = finished(prompt([1, 2, 3]), [4, 5, 6])
    assert common_tokens(row, prompt([1, 2, 3, 4, 5, 6, 7])) == 5  # token 6 was never fed
    assert common_tokens(row, prompt([1, 2, 9, 4])) == 2
    assert common_tokens(row, prompt([1, 2, 3])) == 2
    assert common_tokens(row, prompt([8])) == 0


def test_another_video_with_the_same_tokens_shares_nothing():
    one, other = object(), object()
    row = finished(prompt([1, 7, 7, 2], [0, 2, 2, 0], [one]), [3])
    same, another = (prompt([1, 7, 7, 2, 3, 4], [0, 2, 2, 0, 0, 0], [seen]) for seen in (one, other))
    assert common_tokens(row, same) == 4 and common_tokens(row, another) == 0
    assert common_tokens(row, prompt([1, 7, 9], [0, 2, 0], [one])) == 0  # it parts inside the video


def test_only_videos_behind_the_common_part_are_encoded():
    grids = torch.tensor([[1, 4, 4], [2, 2, 4]])  # 16 and 16 patches: 4 tokens each
    inputs = prompt(
        [1, 7, 7, 7, 7, 2, 7, 7, 7, 7],
        [0, 2, 2, 2, 2, 0, 2, 2, 2, 2],
        video_grid_thw=grids,
        pixel_values_videos=torch.arange(32.0)[:, None],
    ).inputs
    found = new_pixels(inputs, 6, merge=2)
    assert found["video_grid_thw"].tolist() == [[2, 2, 4]] and found["pixel_values_videos"][:, 0].tolist() == list(
        range(16, 32)
    )
    assert len(new_pixels(inputs, 0, merge=2)["pixel_values_videos"]) == 32 and new_pixels(inputs, 10, merge=2) == {}


def test_groups_hold_similar_lengths_apart_from_continued_ones_and_bounded():
    rows = [Row(prompt([0] * n), None, reused=reused) for n, reused in ((5, 0), (3, 0), (9, 4), (4, 0))]
    assert [[row.prompt.length for row in group] for group in group_for_prefill(rows)] == [[3, 4, 5], [9]]
    half = PREFILL_TOKENS // 2
    assert [len(group) for group in group_for_prefill([Row(prompt([0] * half), None) for _ in range(3)])] == [2, 1]
