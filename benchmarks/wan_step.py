"""One Flow-GRPO optimiser step at the shape of Wan2.1-T2V-1.3B: seconds and peak memory, on a GPU.

python benchmarks/wan_step.py [--layers 30 --frames 81 --height 480 --width 832 --guidance 5.0 --any-device]

Random weights in the published configuration, bfloat16, LoRA of rank 32 in float32, gradient checkpointing, micro-batch 1: the mean before
the update (no gradient), then mean, loss and gradient, then AdamW. Goal: within 80 GB. Without a GPU it prints "not measured";
--any-device runs it all the same, to see that it runs (on a CPU give it few layers and a small video).
"""

from __future__ import annotations

import argparse
import time

import published
import torch
from diffusers import WanTransformer3DModel

from cac_align.align.lora import add_lora, lora_parameters
from cac_align.align.losses.grpo_loss import grpo_loss
from cac_align.align.sampling.sde import transition

GOAL_GB = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--frames", type=int, default=81, help="4k + 1")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--guidance", type=float, default=5.0, help="1: one pass instead of two")
    parser.add_argument("--any-device", action="store_true")
    options = parser.parse_args()
    what = f"Wan2.1-T2V-1.3B, one Flow-GRPO optimiser step, {options.frames}x{options.height}x{options.width}"
    if not torch.cuda.is_available() and not options.any_device:
        print(f"{what}: not measured (this machine has no GPU)")
        return
    seconds, peak = optimiser_step(options.layers, options.frames, options.height, options.width, options.guidance)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    memory = "memory not measured" if peak is None else f"peak {peak / 1e9:.1f} GB (goal <= {GOAL_GB})"
    print(f"{what}, {options.layers} layers, guidance {options.guidance}: {seconds:.1f} s, {memory}, {where}")


def optimiser_step(layers: int, frames: int, height: int, width: int, guidance: float) -> tuple[float, int | None]:
    """(seconds of the second step, peak bytes on the GPU or None). The first step warms up and makes AdamW's state."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    config = {**published.wan_1_3b(), "num_layers": layers}
    with torch.device(device):
        transformer = WanTransformer3DModel(**config).to(torch.bfloat16)
    add_lora(transformer, rank=32, alpha=64, ffn=False, seed=0)
    transformer.enable_gradient_checkpointing()
    transformer.train()
    optimizer = torch.optim.AdamW(lora_parameters(transformer).values(), lr=1e-4)
    x = torch.randn(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8, device=device)
    embeds = torch.randn(1 if guidance == 1 else 2, 512, config["text_dim"], device=device, dtype=torch.bfloat16)
    sigmas = tuple(torch.linspace(1, 0, 51).tolist())
    step = 10

    def mean() -> tuple[torch.Tensor, float, float]:
        time_now = torch.full((len(embeds),), 1000 * sigmas[step], device=device)
        v = transformer(torch.cat([x] * len(embeds)).to(torch.bfloat16), time_now, embeds, return_dict=False)[0].float()
        if len(embeds) == 2:
            prompted, empty = v.chunk(2)
            v = empty + guidance * (prompted - empty)
        found = transition("flow", x, v, sigmas, step, 0.3)
        return found.mean, found.std, found.dt

    for _ in range(2):
        began = time.perf_counter()
        with torch.no_grad():
            old, std, dt = mean()
        x_next = old + std * torch.randn_like(old)
        now, _, _ = mean()
        grpo_loss(now, old, x_next, std, dt, torch.ones(1, device=device), clip=1e-3).per_sample.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    return seconds, torch.cuda.max_memory_allocated() if device == "cuda" else None


if __name__ == "__main__":
    main()
