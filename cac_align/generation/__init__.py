"""Who makes videos: Wan checkpoints, Best-of-N, and the generators that recipes describe."""
