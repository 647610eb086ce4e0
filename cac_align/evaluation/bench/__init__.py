"""CaC-Bench: how often a judge is right, and how well it says when and where."""
