"""What the verbs' command lines share: ``--set``, the options that name a reward, help texts."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)


class HelpWithDefaults(argparse.HelpFormatter):
    """Help texts that end with the option's default, unless they state it themselves or there is none."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        without_default = action.default is None or action.default is False or action.default in (argparse.SUPPRESS, [])
        if without_default or "default" in text:
            return text
        return f"{text} (default: %(default)s)"


def add_verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int] | None, about: str, **more: Any
) -> argparse.ArgumentParser:
    """Add the parser of one verb.

    verbs: what ``ArgumentParser.add_subparsers`` returned. run: the function that does the verb's
    work and returns the exit status. about: one line for the help text.
    """
    parser = verbs.add_parser(
        name, help=about, description=about, formatter_class=HelpWithDefaults, allow_abbrev=False, **more
    )
    if run is not None:
        parser.set_defaults(run=run)
        parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def add_set_option(parser: argparse.ArgumentParser, about: str = "override one key of the recipe; repeatable") -> None:
    """Add ``--set KEY=VALUE``, which fills ``options.overrides``."""
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help=about)


def add_reward_options(
    parser: argparse.ArgumentParser, default: str = "UnifiedReward + CaC, the shipped miniature"
) -> None:
    """Add ``--reward`` and ``--set``. default: what a missing ``--reward`` means, for the help text."""
    parser.add_argument(
        "--reward",
        help="recipe (YAML, or the name of one that ships), URL of `cac-align serve`, or module:Name "
        f"(default: {default})",
    )
    add_set_option(parser)


@contextmanager
def stated_domain(*rewards: Any) -> Iterator[None]:
    """Say on stderr, before the first video and after the last one, for what these rewards were
    made, where they state it.
    """
    from cac_align.rewards.domain import domain_notice

    notices = list(dict.fromkeys(notice for notice in map(domain_notice, rewards) if notice))
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr, flush=True)
    yield
    for notice in notices:
        print(f"note: {notice}", file=sys.stderr, flush=True)


def input_path(text: str) -> Path:
    """The type of an argument that names a file or folder to read.

    Raises ``argparse.ArgumentTypeError`` for the text of a recipe override, which belongs behind
    ``--set``.
    """
    if _OVERRIDE.fullmatch(text) and not Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text} is not a file; to override a recipe key write --set {text}")
    return Path(text)


def unknown_argument_message(unknown: Sequence[str], arguments: Sequence[str], takes_set: bool) -> str:
    """The error for arguments that a verb does not have, with what to write in their place.

    unknown: what the parser left over. arguments: the whole command line. takes_set: whether the
    verb has ``--set``.
    """
    message = f"unrecognized arguments: {' '.join(unknown)}"
    first = unknown[0]
    if not takes_set:
        return message
    if _OVERRIDE.fullmatch(first):
        return f"{message}; to override a recipe key write --set {first}"
    if not first.startswith("--"):
        return message
    key, sign, value = first[2:].partition("=")
    if not sign:
        following = list(arguments)[list(arguments).index(first) + 1 :][:1]
        value = following[0] if following and not following[0].startswith("-") else "VALUE"
    return f"{message}; to override a recipe key write --set {key.replace('-', '_')}={value}"


def check_writable(option: str, path: Path | None, *, folder: bool = False) -> None:
    """Raise ``ValueError`` where a file (or a folder) cannot be written at ``path``; None is no path.

    Nothing is created. option: what the path was given as, for the message.
    """
    if path is None:
        return
    if path.exists() and path.is_dir() != folder:
        raise ValueError(
            f"{option} {path} is a {'file' if folder else 'folder'}; give the path of a "
            f"{'folder' if folder else 'file'}"
        )
    nearest = path.absolute() if path.exists() else path.absolute().parent
    while not nearest.exists():
        nearest = nearest.parent
    if not path.exists() and not nearest.is_dir():
        raise ValueError(f"{option} {path}: {nearest} is a file, so nothing can be written below it")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{option} {path} cannot be written: no permission in {nearest}; choose another place")


def check_positive(name: str, value: float | None) -> None:
    """Raise ``ValueError`` for a given value that is not a positive, finite number."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a positive number, received {value:g}")


def port_number(text: str) -> int:
    """The type of ``--port``.

    Raises ``argparse.ArgumentTypeError`` for what is no number from 0 to 65535.
    """
    if not (text.isdecimal() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"{text} is not a port; expected a number from 0 to 65535")
    return int(text)
