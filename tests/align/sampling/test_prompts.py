"""Training prompts, the prompts of each step, chunks, and the prompts of the evaluation videos."""

import re
from dataclasses import replace

import pytest

from cac_align.align.recipe import AlignRecipe
from cac_align.align.sampling.prompts import eval_prompts, prompts_per_chunk, read_training_prompts, step_prompts


def test_blank_lines_and_repetitions_are_left_out_and_counted(tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("a red ball\n\n  a blue box \na red ball\na green ball\n   \n")
    assert read_training_prompts(str(file), 0, 1) == ["a red ball", "a blue box", "a green ball"]
    assert "3 prompts; left out 2 blank lines and 1 repetitions" in capsys.readouterr().err
    file.write_text("\n".join(f"prompt {n}" for n in range(10_000)))
    assert len(read_training_prompts(str(file), 0, 1)) == 10_000
    assert not capsys.readouterr().err
    file.write_text("\n \n")
    with pytest.raises(ValueError, match="holds no prompt; write one per line"):
        read_training_prompts(str(file), 0, 1)
    file.write_text('{"prompt": "a red ball"}\n{"prompt": "a blue box"}\n')
    assert read_training_prompts(str(file), 0, 1) == ["a red ball", "a blue box"]
    file.write_text('{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"prompts: .*prompts.txt:1: expected a JSON object with a prompt"):
        read_training_prompts(str(file), 0, 1)


def test_every_prompt_is_used_once_per_pass_and_never_twice_in_a_step():
    prompts = [f"p{n}" for n in range(7)]
    given = AlignRecipe(prompts_per_step=3, seed=5)
    steps = [step_prompts(step, prompts, given) for step in range(70)]
    assert all(len(set(step)) == 3 for step in steps)
    assert sorted([*steps[0], *steps[1]]) == sorted({*steps[0], *steps[1]}), "the first six of the first pass differ"
    for passes in range(0, 70, 7):  # seven steps are three passes, with two seams in them
        used = [prompt for step in steps[passes : passes + 7] for prompt in step]
        assert [used.count(prompt) for prompt in prompts] == [3] * 7
    assert steps[0] != step_prompts(0, prompts, replace(given, seed=6))


def test_groups_divide_over_processes_or_it_is_said_how():
    assert prompts_per_chunk(AlignRecipe(group_size=16, prompts_per_step=2), 8) == 1
    assert prompts_per_chunk(AlignRecipe(group_size=16, prompts_per_step=2), 32) == 2  # the paper: 32 GPUs, 32 videos
    message = "group_size 16 × prompts_per_step 1 = 16 videos do not divide over 3 processes; the nearest group sizes that do are 15 and 18"
    with pytest.raises(ValueError, match=re.escape(message)):
        prompts_per_chunk(AlignRecipe(group_size=16, prompts_per_step=1), 3)


def test_evaluation_prompts_are_not_trained_on_where_a_function_makes_them(tmp_path):
    given = AlignRecipe(prompt_count=20)
    given.eval.prompts = 6
    trained = read_training_prompts(given.prompts, given.prompt_first, 20, note=False)
    following = read_training_prompts(given.prompts, given.prompt_first + 20, 6, note=False)
    assert eval_prompts(given, trained) == following
    given.prompts = str(tmp_path / "file.txt")
    assert eval_prompts(given, trained) == trained[:6]
