"""The small Wan and the small Qwen3-VL judges: the real classes at a size that runs on a laptop."""
