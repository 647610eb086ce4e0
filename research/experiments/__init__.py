"""Measures them: tables, ablations, figures."""
