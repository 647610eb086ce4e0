"""Checks of a host trainer's config and of this environment, with the lines to add where one fails."""
