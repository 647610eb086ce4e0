"""`cac-align serve` and `doctor`: the reward as a service, and whether a host trainer is wired right."""

from __future__ import annotations

import argparse
import os


def run_serve(options: argparse.Namespace) -> int:
    from cac_align.rewards.build import load_reward
    from cac_align.serving.app import Settings, serve

    reward = load_reward(options.reward, options.overrides)
    settings = Settings(token=os.environ.get("CAC_ALIGN_TOKEN"), roots=tuple(options.roots), fps=options.fps)
    serve(reward, host=options.host, port=options.port, settings=settings, ledger=options.ledger)
    return 0


def run_doctor(options: argparse.Namespace) -> int:
    from cac_align.plugins.doctor.checklist import checklist, doctor, to_json

    checks = doctor(options.host, options.config)
    print(to_json(checks) if options.json else checklist(options.host, checks))
    return 1 if any(check.ok is False for check in checks) else 0
