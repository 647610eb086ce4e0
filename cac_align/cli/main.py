"""The command `cac-align`: its verbs, exit statuses and error messages.

command line → build_parser → a verb's options → the verb's ``run_…`` function → exit status

Progress goes to stderr and results to stdout. A verb that was interrupted goes on where it stopped
when it is run again. ``--set key=value`` overrides one key of a recipe, in OmegaConf's dot
notation.
"""

from __future__ import annotations

import argparse
import atexit
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cac_align import __version__
from cac_align.cli.align import add_align
from cac_align.cli.annotate import add_annotate
from cac_align.cli.best_of_n import add_best_of_n
from cac_align.cli.data import add_data
from cac_align.cli.demo import add_demo
from cac_align.cli.doctor import add_doctor
from cac_align.cli.evaluate import add_evaluate, add_vbench_env
from cac_align.cli.options import HelpWithDefaults, unknown_argument_message
from cac_align.cli.recipes import add_recipes
from cac_align.cli.repair import add_repair
from cac_align.cli.report import add_report
from cac_align.cli.score import add_score
from cac_align.cli.serve import add_serve
from cac_align.cli.train import add_train
from cac_align.cli.world import add_world
from cac_align.runs.disk import disk_full_message

VERBS = (
    add_demo,
    add_score,
    add_best_of_n,
    add_repair,
    add_align,
    add_world,
    add_data,
    add_train,
    add_recipes,
    add_evaluate,
    add_report,
    add_annotate,
    add_vbench_env,
    add_serve,
    add_doctor,
)
"""Functions that add one verb's parser each, in the order of the help text."""

# Packages that the bare installation leaves out, and the extra that brings them.
_EXTRAS = {
    **dict.fromkeys(("fastapi", "uvicorn", "starlette", "prometheus_client"), "serve"),
    **dict.fromkeys(("statsmodels", "krippendorff"), "evaluate"),
    **{name: name for name in ("tensorboard", "wandb")},
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line. It loads no model library."""
    parser = argparse.ArgumentParser(
        prog="cac-align",
        description="The reward that makes generated video stop breaking.",
        formatter_class=HelpWithDefaults,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cac-align {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in VERBS:
        add(verbs)
    return parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of one command line (None: this program's).

    Exits with status 2 and a message where it is wrong.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    options, unknown = parser.parse_known_args(given)
    if unknown:
        parser.error(unknown_argument_message(unknown, given, takes_set=hasattr(options, "overrides")))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns the exit status: 0 done; 1 done in part, or a check failed; 2 wrong input; 130
    interrupted; 141 the reader of the output went away.
    """
    # The CPU threads of torch spin while they wait for each other: on a machine that does something else as well, a
    # small judge then takes fifty times as long. Before torch is loaded they can be told to sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _quiet_libraries()
    options = parse(arguments)
    if getattr(options, "quiet", False):
        _silence_progress()
    verb = " ".join(filter(None, (options.verb, getattr(options, "kind", None))))
    try:
        status = options.run(options)
        sys.stdout.flush()  # what is printed may be redirected to a full disk
        return status
    except Exception as error:
        command = shlex.join(["cac-align", *(sys.argv[1:] if arguments is None else arguments)])
        named = [getattr(options, name, None) for name in ("out", "ledger", "database", "dest")]
        named += [item.partition("=")[2] for item in getattr(options, "overrides", []) if item.startswith("out=")]
        out = next((Path(value) for value in named if value), None) or _output_file()
        full = disk_full_message(error, out, command)
        if full is None:
            return _explain(error, options, verb)
        print(f"cac-align {verb}: {full}", file=sys.stderr)
        _drop_unwritten_output()
        return 2
    except KeyboardInterrupt:
        print(f"\ncac-align {verb}: interrupted; the same command resumes", file=sys.stderr)
        return 130


def _output_file() -> Path | None:
    """The file that stdout is redirected to, if any, where the system can tell."""
    try:
        path = Path(os.readlink(f"/proc/self/fd/{sys.stdout.fileno()}"))
    except (OSError, ValueError):
        return None
    return path if path.is_file() else None


def _drop_unwritten_output() -> None:
    """Forget what cannot be written to stdout, which Python would try again, and fail, at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _silence_progress() -> None:
    from cac_align.runs.progress import silence

    silence()


def _quiet_libraries() -> None:
    """Keep from the terminal what libraries tell those who program with them. Their variables, where
    set, go before.
    """
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(name, "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)


def _explain(error: Exception, options: argparse.Namespace, verb: str) -> int:
    """Print what a user can do about an error and return the exit status; raise it again where that is unknown."""
    try:
        raise error
    except ValueError as error:
        print(f"cac-align {verb}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        extra = "evaluate" if options.verb == "annotate" else extra
        install = f"pip install -c constraints.txt -e '.[{extra}]'"
        print(f"cac-align {verb} needs the package {error.name}: in its checkout: {install}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) went away; nothing more can be said
        return 141
    except OSError as error:  # a path that is not there, may not be written, or is a folder
        if error.filename is None:
            raise
        print(f"cac-align {verb}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


def program() -> NoReturn:
    """What the command `cac-align` runs: ``main``, then ``leave`` with its exit status.

    A Ctrl-C while an interrupted verb still stops, because its threads finish what they do, ends the
    program at once.
    """
    status = main()
    if status == 130:
        signal.signal(signal.SIGINT, _end_now)
    leave(status)


def _end_now(number: int, frame: object) -> NoReturn:
    os.write(2, b"\ncac-align: ended at once; the same command resumes\n")
    os._exit(130)


def leave(status: int) -> NoReturn:
    """End this program with an exit status, also where it ran on several processes.

    On several processes it ends without the interpreter being taken apart. DDP's reducer keeps the
    process group even after ``destroy_process_group``, and a gloo thread that asks for an
    interpreter that is gone aborts the process now and then, after everything is written; the
    launcher then reports a failure (one of eight two-process programs here). Functions registered
    with ``atexit`` run before.
    """
    distributed = sys.modules.get("torch.distributed")
    if status in (0, 1) and distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
