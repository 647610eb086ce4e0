"""Annotated videos as records: read, checked, converted, explained by a teacher, split into stages."""
