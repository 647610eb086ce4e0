"""From scores to advantages: per video, per latent position, and of the groups of a step."""
