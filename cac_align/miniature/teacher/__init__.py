"""The teacher who knows the truth: the answers a perfect small judge would write."""
