"""Which injector finds how many pairs in a folder of videos, each tried by itself.

`python -m research.experiments.injection_footage VIDEOS [--places 2] [--seed 1] [--body-models WHEEL]`

At ``places`` places of every video each injector is tried alone, as often and as severely as
`cac-align data inject` does. The table says in how many clips a pair was kept.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import numpy as np

from cac_align.cli.inject import source_files
from cac_align.data.injection.pairs import make_pair
from cac_align.data.injection.registry import usable_injectors
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources.clips import UnusableSource, load_clip, open_source


def main() -> None:
    """Print the table to stdout, and why nothing was kept to stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--places", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--body-models", default="")
    options = parser.parse_args()
    settings = Injection(body_models=options.body_models)
    injectors, missing = usable_injectors(settings.tiers, body_models=options.body_models)
    pairs: Counter[str] = Counter()
    clips, sources, skipped = 0, {name: set() for name in injectors}, Counter()
    for file in source_files(options.videos):
        for place in (np.arange(options.places) + 0.5) / options.places:
            try:
                clip, _ = load_clip(open_source(file.path, settings), place, settings, unmoved=True)
            except UnusableSource as error:
                skipped[f"{file.name}: {error.reason}"] += 1
                continue
            clips += 1
            for name, injector in injectors.items():
                pair, rejected = make_pair(clip, {name: injector}, np.random.default_rng(options.seed), settings)
                if pair is None:
                    print(f"{file.name} at {place:.2f}: {name}: {rejected[-1].reason}", file=sys.stderr, flush=True)
                else:
                    pairs[name] += 1
                    sources[name].add(file.name)
    print(f"{clips} clips; skipped: {dict(skipped)}; not installed: {missing}\n")
    print("| injector | pairs | from |\n|---|---|---|")
    for name in injectors:
        print(f"| `{name}` | {pairs[name]} | {', '.join(sorted(sources[name])) or 'none'} |")


if __name__ == "__main__":
    main()
