"""Rewards: a score for every video, or the reason why there is none; their combination; the ledger that keeps them."""
