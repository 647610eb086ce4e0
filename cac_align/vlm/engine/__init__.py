"""The local judging engine: many answers decoded together, and words read as probabilities."""
