"""Other judges of generated video as rewards: what each is shown, asked, and how its answer is read.

A judge that only compares two videos is a ``pairwise.comparison.Comparator`` and becomes a reward
through ``pairwise.tournament.Tournament``; the others are rewards as they are. Prompts belong to
their authors: each judge reads the text from your copy of upstream's file and checks its hash
(``upstream_prompt``). An answer that does not follow the judge's format is no score.
"""
