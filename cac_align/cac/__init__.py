"""The method: two turns, the readout of the verdict, test-time augmentation, and the prompts."""
