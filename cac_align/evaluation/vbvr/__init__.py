"""VBVR-Bench, scored by its own package."""
