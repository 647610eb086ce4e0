"""The losses of alignment: Flow-GRPO and DiffusionNFT, and their sum over a micro-batch."""
