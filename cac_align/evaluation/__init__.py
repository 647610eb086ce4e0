"""How good is a judge, and how good are videos: the bench, the report, people's ratings, VBench."""
