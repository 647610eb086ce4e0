"""Flow-GRPO on Wan: sampling as an SDE, group advantages of any reward, a clipped LoRA update; and DiffusionNFT in the same loop."""
