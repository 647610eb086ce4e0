"""`cac-align`: every verb of the package. Progress goes to stderr, results to stdout; exit status 0 means: it did what was asked.

demo | score | best-of-n | align | train | world | data | evaluate | report | annotate | serve | doctor | vbench-env

Each verb runs again where it stopped. ``--set key=value`` overrides a recipe's keys (OmegaConf's dot notation).
"""

from __future__ import annotations

import argparse
import atexit
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

_EXTRAS = {
    **dict.fromkeys(("fastapi", "uvicorn", "starlette", "prometheus_client"), "serve"),
    **dict.fromkeys(("statsmodels", "krippendorff"), "evaluate"),
    **{name: name for name in ("tensorboard", "wandb")},
}
"""Packages that are not installed with the package itself, and the extra that brings them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0 done, 1 done in part or a check failed, 2 wrong input, 130 interrupted."""
    # Torch's CPU threads spin while they wait for each other: on a machine that does something else as well, a small judge takes fifty
    # times as long. Before torch is loaded they can be told to sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _parser().parse_args(arguments)
    verb = " ".join(filter(None, (options.verb, getattr(options, "kind", None))))
    try:
        return options.run(options)
    except ValueError as error:
        print(f"cac-align {verb}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        extra = "evaluate" if options.verb == "annotate" else extra
        print(
            f"cac-align {verb} needs the package {error.name}: in its checkout: pip install -c constraints.txt -e '.[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"\ncac-align {verb}: interrupted; the same command resumes", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) went away; nothing more can be said
        return 141
    except OSError as error:  # a path that is not there, may not be written, or is a folder
        if error.filename is None:
            raise
        print(f"cac-align {verb}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


def program() -> NoReturn:
    """What the command `cac-align` runs: ``main``, then ``leave``."""
    leave(main())


def leave(status: int) -> NoReturn:
    """Ends this program with this exit status: its last line where it ran on several processes.

    There it ends without taking the interpreter apart. DDP's reducer keeps the process group even after ``destroy_process_group``, and a gloo
    thread that still asks for the interpreter when it is gone aborts the process now and then, after all is written: the launcher then
    reports a failure (one of eight two-process programs here). What was to run at the exit has run before.
    """
    distributed = sys.modules.get("torch.distributed")
    if status in (0, 1) and distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _late(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """The function that runs a verb, imported when it is run: `--help` stays quick."""
    return lambda options: getattr(import_module(f"cac_align.cli.{module}"), name)(options)


def _parser() -> argparse.ArgumentParser:
    from cac_align import __version__
    from cac_align.cli.data import add_verbs as add_data_verbs

    parser = argparse.ArgumentParser(
        prog="cac-align", description="The reward that makes generated video stop breaking."
    )
    parser.add_argument("--version", action="version", version=f"cac-align {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, module: str, function: str, about: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=about, description=about)
        sub.set_defaults(run=_late(module, function))
        return sub

    demo = verb(
        "demo",
        "selecting",
        "run_demo",
        "Best-of-5 with UnifiedReward + CaC on the miniature: videos, ledger, report.html",
    )
    demo.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write (default: out/demo)")
    demo.add_argument("--n", type=int, default=5, help="candidates per prompt (default: 5)")
    demo.add_argument("--prompts", type=int, default=8, help="how many prompts (default: 8)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument(
        "--guidance-scale",
        type=float,
        help="of the small Wan (default: 1.0, no guidance; above it fewer clips break, at twice the time)",
    )

    score = verb("score", "scoring", "run_score", "score videos with a reward")
    score.add_argument("videos", nargs="+", metavar="VIDEO", help="video files")
    score.add_argument("--prompt", help="the prompt all these videos were made from")
    score.add_argument(
        "--prompts", type=Path, help="prompts per video: one line per video, or JSON Lines with video and prompt"
    )
    score.add_argument(
        "--fps", type=float, help="the videos' true frame rate, where their container is wrong (Wan: 16)"
    )
    score.add_argument("--json", action="store_true", help="JSON Lines instead of a table")
    score.add_argument("--ledger", type=Path, help="cache and audit trail: scored videos are not judged again")
    _reward_options(score)

    best = verb(
        "best-of-n", "selecting", "run_best_of_n", "generate N candidates per prompt, keep the best, and say why"
    )
    best.add_argument(
        "--prompts", type=Path, required=True, help="one prompt per line, or JSON Lines with a prompt field"
    )
    best.add_argument("--n", type=int, help="candidates per prompt (default: the recipe's, 5)")
    best.add_argument("--out", type=Path, required=True, help="folder to write; the same command resumes in it")
    best.add_argument("--seed", type=int, help="first seed (default: the recipe's, 0)")
    best.add_argument("--recipe", type=Path, help="YAML with generator: and reward: (default: the miniature)")
    best.add_argument(
        "--candidates", type=Path, help="folder or JSON Lines (prompt, video): choose among these instead of generating"
    )
    best.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key"
    )
    best.add_argument("--json", action="store_true", help="print selection.jsonl instead of a table")

    align = verb("align", "align", "run_align", "align a Wan model with a reward: Flow-GRPO or DiffusionNFT, a LoRA")
    align.epilog = (
        "The same command resumes. Exit status: 0 trained; 1 trained, and a guard raised an alarm; 2 stopped, and why."
    )
    align.add_argument("recipe", type=Path, help="YAML, e.g. recipes/align/miniature.yaml")
    align.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="override recipe keys, e.g. out=DIR (default: the recipe's)"
    )
    align.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key"
    )

    world = verb(
        "world",
        "selecting",
        "run_world",
        "render miniature clips as mp4 with exact records, half normal, half anomalous",
    )
    world.add_argument("--n", type=int, required=True, help="how many clips, an even number")
    world.add_argument(
        "--seed", type=int, default=2_000_000, help="first seed; held-out seeds start at 2000000 (default)"
    )
    world.add_argument("--out", type=Path, required=True)
    world.add_argument(
        "--world", choices=("full", "studio", "playground"), default="full", help="the small judges know the playground"
    )
    add_data_verbs(
        verb("data", "data", "run_validate", "annotated videos: check, convert, explain, split into stages"), _late
    )
    train = verb(
        "train",
        "train",
        "run_train",
        "train CaC: single frames, then clips, then two-turn GRPO; the same command resumes",
    )
    train.add_argument("stage", choices=("stage1", "stage2", "stage3"))
    train.add_argument("recipe", type=Path, help="YAML, see recipes/cac and recipes/miniature")
    train.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="override recipe keys: data.folder=DIR model.path=DIR out=DIR"
    )
    train.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key"
    )
    _evaluate_verbs(verb("evaluate", "judging", "run_bench", "how good is a judge, how good are the videos"), _late)
    report = verb(
        "report",
        "judging",
        "run_report",
        "one self-contained HTML page: before against after, or what a training run rewarded",
    )
    report.add_argument(
        "before",
        type=Path,
        nargs="?",
        help="folder of videos; alone: a Best-of-N folder (a random candidate against the chosen), or a run's folder with ledger.jsonl",
    )
    report.add_argument("after", type=Path, nargs="?")
    report.add_argument(
        "--ledger",
        type=Path,
        help="a run's ledger: the boxed clips beside the advantages its host gave them, step by step",
    )
    report.add_argument("--clips-per-step", type=int, default=4, help="run: clips shown per step (default: 4)")
    report.add_argument(
        "--max-steps", type=int, default=12, help="run: steps shown; all are in the table (default: 12)"
    )
    report.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: report.html, here)")
    report.add_argument("--ratings", type=Path, action="append", default=[], help="ratings exported by the rating page")
    report.add_argument("--max-pairs", type=int, default=50, help="pairs shown; all are counted (default: 50)")
    report.add_argument("--seed", type=int, default=0)
    _reward_options(report, default="what the folders' ledgers hold")

    annotate = verb("annotate", "judging", "run_annotate", "a local page where people rate videos blind, by keyboard")
    annotate.add_argument("folders", type=Path, nargs="+", help="folder of videos, or the two folders before and after")
    annotate.add_argument("--rater", help="whose page opens at / (default: the page asks)")
    annotate.add_argument("--database", type=Path, help="where every action is kept (default: beside the videos)")
    annotate.add_argument("--host", default="127.0.0.1")
    annotate.add_argument("--port", type=_port, default=8017, help="default: 8017")
    annotate.add_argument("--seed", type=int, default=0, help="shuffles the order and the sides")

    env = verb("vbench-env", "judging", "run_vbench_env", "create the environment of its own that VBench needs")
    env.add_argument("folder", nargs="?", type=Path, help="where to (default: where `evaluate vbench` looks for it)")

    serve = verb(
        "serve",
        "serving",
        "run_serve",
        "serve a reward over HTTP: its own API, UniRL's /score, Flow-Factory's /compute",
    )
    _reward_options(serve)
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to bind; anything but loopback needs CAC_ALIGN_TOKEN"
    )
    serve.add_argument("--port", type=_port, default=8000, help="default: 8000")
    serve.add_argument(
        "--fps",
        type=float,
        default=16.0,
        help="rate of videos that come without one, as hosts' files do (default: 16, Wan's)",
    )
    serve.add_argument(
        "--root", dest="roots", action="append", type=Path, default=[], help="folder whose videos may be named by path"
    )
    serve.add_argument("--ledger", type=Path, help="cache and audit trail of every judgement")

    doctor = verb(
        "doctor",
        "serving",
        "run_doctor",
        "check this environment and a host trainer's config, and print the lines to add",
    )
    doctor.add_argument("--host", help="flow-factory | flow_grpo | unirl | verl-omni | videoalign | trl")
    doctor.add_argument("--config", type=Path)
    doctor.add_argument("--json", action="store_true")
    return parser


def _evaluate_verbs(
    evaluate: argparse.ArgumentParser, late: Callable[[str, str], Callable[[argparse.Namespace], int]]
) -> None:
    kinds = evaluate.add_subparsers(dest="kind", required=True, metavar="bench|calibrate|vbench|experts")

    bench = kinds.add_parser(
        "bench", help="a judge against annotated records: CaC-Bench's tables, calibration, intervals"
    )
    bench.set_defaults(run=late("judging", "run_bench"))
    bench.add_argument("records", type=Path, help="records.jsonl; its videos lie relative to it")
    bench.add_argument(
        "--reward", action="append", help="recipe YAML or module:Name; several are compared (default: the miniature)"
    )
    bench.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key"
    )
    bench.add_argument(
        "--stored", action="append", type=Path, help="scores made before (ledger, or `score --json`): no model is run"
    )
    bench.add_argument(
        "--threshold",
        type=float,
        help="score below which a video counts as abnormal (default: the judge's own verdict)",
    )
    bench.add_argument("--ledger", type=Path, help="keep and reuse scores")
    bench.add_argument("--out", type=Path, help="folder for bench.json, bench.md and plots")
    bench.add_argument("--videos", action="store_true", help="with --json: one row per video as well")
    bench.add_argument("--json", action="store_true")

    fit = kinds.add_parser("calibrate", help="temperature and threshold of a CaC judge, fitted on annotated records")
    fit.set_defaults(run=late("judging", "run_calibrate"))
    fit.add_argument(
        "records", type=Path, help="records.jsonl of videos that it has not learnt from and will not be measured on"
    )
    fit.add_argument("--reward", help="recipe YAML with one two-turn cac in it (default: the miniature)")
    fit.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key"
    )
    fit.add_argument("--ledger", type=Path, help="keep and reuse scores")
    fit.add_argument("--write", type=Path, metavar="FOLDER", help="write them into this judge's cac_align.json")
    fit.add_argument("--json", action="store_true")

    vbench = kinds.add_parser("vbench", help="the real VBench, run in an environment of its own")
    vbench.set_defaults(run=late("judging", "run_vbench"))
    vbench.add_argument("folder", type=Path, help="folder of videos")
    vbench.add_argument(
        "--dimensions",
        nargs="+",
        default=["subject_consistency", "imaging_quality", "dynamic_degree"],
        metavar="NAME",
        help="default: subject_consistency imaging_quality dynamic_degree",
    )
    vbench.add_argument(
        "--prompts",
        type=Path,
        help="JSONL of {video, prompt} for the dimensions that need one (default: the folder's listings)",
    )
    vbench.add_argument(
        "--rows", type=Path, help="where per-video results are kept (default: vbench.jsonl in the folder)"
    )
    vbench.add_argument("--python", type=Path, help="python of an environment that has vbench")
    vbench.add_argument("--device", default="cpu", help="default: cpu")
    vbench.add_argument("--json", action="store_true")

    experts = kinds.add_parser("experts", help="what people rated: anomaly rates, paired difference, agreement")
    experts.set_defaults(run=late("judging", "run_experts"))
    experts.add_argument("ratings", type=Path, help="ratings.jsonl, or the folder the rating page wrote")
    experts.add_argument("--groups", nargs=2, metavar=("BEFORE", "AFTER"))
    experts.add_argument("--json", action="store_true")


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text} is no port; expected 0 to 65535")
    return int(text)


def _reward_options(parser: argparse.ArgumentParser, default: str = "UnifiedReward + CaC, the miniature") -> None:
    parser.add_argument("--reward", help=f"recipe YAML or module:Name (default: {default})")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key"
    )
