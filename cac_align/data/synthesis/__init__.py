"""Chains of thought from annotated records: questions for a teacher, its answers verified."""
