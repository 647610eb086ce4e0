"""Alignment of Wan with any reward: Flow-GRPO and DiffusionNFT, which train a LoRA on groups of
sampled videos.
"""
