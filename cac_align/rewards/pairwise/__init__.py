"""Rewards of judges that only compare two videos: comparisons → strengths within a prompt's group.

videos of one prompt → schedule: which pairs → comparator: both orders → p per pair
    → checks (connected? any preference at all?) → Bradley-Terry strengths → Score per video

Each file is one step: ``comparison`` (what a judge says of a pair), ``schedules``,
``bradley_terry``, ``diagnostics`` (position bias, cycles, significance) and ``tournament``, which is
the reward. Judges that compare live in ``rewards.judges``.
"""
