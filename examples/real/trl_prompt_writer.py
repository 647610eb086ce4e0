"""TRL: train a language model to write prompts from which Wan makes videos that do not break.

TRL trains language models, so this is where a video reward meets it: the model rewrites a wish, Wan makes a video from
the rewritten prompt, and the judge scores the video against the wish. GRPO raises the prompts whose videos score well.

Needs    one GPU of 80 GB for the writer and Wan-2.1-1.3B (not tried: no GPU was at hand), trl 1.10 or newer
         (pip install trl), and a running service: cac-align serve --reward qwen3vl_8b_server
Run      python examples/real/trl_prompt_writer.py --wishes wishes.txt          # one wish per line
Try it   python examples/real/trl_prompt_writer.py --miniature                  # a CPU, about a minute, no download

The output of the last line, with trl 1.16 on a CPU. The miniature's writer is a random model of 22,112 weights that
knows 22 tokens, so that its prompts are no sentences; Wan and judge are the shipped miniature. It proves the way of the
reward through TRL's trainer, and no more: two steps teach nothing.

      0.381  yellow at rises blue red rests the green
      0.619  sand rolls yellow
      0.520  red rolls grass to ball rests rises falls
      0.353  box red falls the rolls rolls at rises
      0.833  a sand to sand a night
      0.628  green night
      0.285  rises ball rolls falls green grass red
      0.892  a blue box rests at night
    step 1: {'reward': 0.4681, 'reward_std': 0.1244, 'grad_norm': 1.4094}
    step 2: {'reward': 0.6596, 'reward_std': 0.274, 'grad_norm': 2.0697}

Each line is the mean of UnifiedReward and CaC and the prompt that it was given for. "a blue box rests at night" is the
wish of the second step; the random writer wrote nothing there, so that Wan got the wish itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cac_align import Video
from cac_align.plugins.trl import VideoReward

INSTRUCTION = "Rewrite this wish as one detailed prompt for a video model. Answer with the prompt alone.\n\n{wish}"
SMALL_WISHES = ("a red ball rolls to the right on grass", "a blue box rests at night")


class PromptReward:
    """A reward function of TRL: makes one video per rewritten prompt and scores it against the wish.

    Every completion of a group gets a seed of its own, and the same ones in each step.
    """

    __name__ = "cac_unified"

    def __init__(self, wan: Callable[[str, int], Video], judge: VideoReward, group_size: int) -> None:
        self.wan, self.judge, self.group_size = wan, judge, group_size

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], wish: Sequence[str], **columns: Any
    ) -> list[float | None]:
        """One number per completion. wish: TRL passes every column of the data set by its name."""
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        rewritten = [text.strip() or one for text, one in zip(texts, wish, strict=True)]  # nothing written: the wish
        videos = [self.wan(prompt, number % self.group_size) for number, prompt in enumerate(rewritten)]
        values = self.judge(prompts=list(wish), videos=[video.frames(range(len(video))).pixels for video in videos])
        for prompt, value in zip(rewritten, values, strict=True):
            print(f"  {value:.3f}  {prompt}" if value is not None else f"   none  {prompt}", flush=True)
        return values


def small_writer(folder: Path) -> str:
    """A random language model that knows the words of the wishes and a few more; its folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    known = {word for wish in SMALL_WISHES for word in wish.split()}
    words = sorted(known | {"green", "yellow", "falls", "rises", "sand"})
    table = {word: number for number, word in enumerate(["<pad>", "<end>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen3Config(
        vocab_size=len(table), head_dim=16, intermediate_size=64, **size, eos_token_id=1, pad_token_id=0
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wishes", type=Path, help="what the videos are to show, one per line")
    parser.add_argument("--writer", default="Qwen/Qwen3-0.6B", help="the language model that is trained")
    parser.add_argument("--wan", default="Wan-AI/Wan2.1-T2V-1.3B-Diffusers", help="who makes the videos")
    parser.add_argument("--reward", default="http://127.0.0.1:8000", help="the service's URL, or a reward recipe")
    parser.add_argument("--group-size", type=int, default=8, help="rewritten prompts per wish")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("out/trl"))
    parser.add_argument("--miniature", action="store_true", help="a random small writer, the shipped Wan and judge")
    given = parser.parse_args()

    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from cac_align.generation.build import GeneratorRecipe, load_generator

    given.out.mkdir(parents=True, exist_ok=True)
    wishes: Sequence[str] = SMALL_WISHES
    if given.miniature:
        given.writer, given.wan, given.reward = small_writer(given.out / "writer"), "miniature", "reward/miniature"
        given.group_size, given.steps = 4, 2
    elif given.wishes is None:
        parser.error("--wishes FILE names what the videos are to show (or try --miniature)")
    else:
        wishes = [line.strip() for line in given.wishes.read_text(encoding="utf-8").splitlines() if line.strip()]
    asked = [
        wish if given.miniature else [{"role": "user", "content": INSTRUCTION.format(wish=wish)}] for wish in wishes
    ]
    judge = VideoReward(
        reward=given.reward, fps=16, group_size=given.group_size, ledger=str(given.out / "ledger.jsonl")
    )
    settings = GRPOConfig(
        output_dir=str(given.out),
        per_device_train_batch_size=given.group_size,  # one wish per step
        num_generations=given.group_size,
        max_completion_length=8 if given.miniature else 256,
        max_steps=given.steps,
        learning_rate=1e-3 if given.miniature else 1e-6,
        logging_steps=1,
        save_strategy="no" if given.miniature else "steps",
        report_to=[],
        disable_tqdm=True,
        use_cpu=given.miniature,
        bf16=not given.miniature,
        seed=0,
        chat_template_kwargs={} if given.miniature else {"enable_thinking": False},
    )
    trainer = GRPOTrainer(
        model=given.writer,
        reward_funcs=[PromptReward(load_generator(GeneratorRecipe(model=given.wan)), judge, given.group_size)],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": asked, "wish": list(wishes)}),
    )
    trainer.remove_callback(PrinterCallback)  # its numbers are printed below
    trainer.train()
    for row in trainer.state.log_history:
        if "reward" in row:
            shown = {name: round(row[name], 4) for name in ("reward", "reward_std", "grad_norm")}
            print(f"step {row['step']}: {shown}")


if __name__ == "__main__":
    main()
