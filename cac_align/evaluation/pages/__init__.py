"""HTML pages: what all pages are drawn with, and the pages of Best-of-N and of a training run."""
