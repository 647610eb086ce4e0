"""One command that makes every weight file of the miniature from nothing.

research/recipes/*.yaml → ``parts`` (what is made, by which recipe) → ``steps`` → ``run`` (stamps, resume, one log)
→ ``figures`` → ``gate`` (expected.json) → the shipped weights

    python -m research.build all|vae|wan|judge|unified [--plan] [--scale S] [--out DIR]
"""
