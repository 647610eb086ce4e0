"""The injectors, one file per family."""
