"""The miniature: a small world with exact truth, a small Wan and small judges trained on it."""
