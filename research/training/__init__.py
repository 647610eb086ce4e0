"""Trains the small Wan and the small judges."""
