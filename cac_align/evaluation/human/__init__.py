"""What people say: the rating page, its store, and the expert anomaly rate."""
