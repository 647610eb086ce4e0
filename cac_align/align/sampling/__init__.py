"""Sampling the videos of a step: prompts, chunks, rollouts, and the SDE that makes them vary."""
