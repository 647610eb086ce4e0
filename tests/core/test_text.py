"""Half of a surrogate pair reaches no file and no answer, and every pattern takes linear time."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import time
from pathlib import Path

import pytest

import cac_align
from cac_align.core.prompts import read_prompts
from cac_align.core.text import check_prompt, well_formed
from cac_align.vlm.protocol import Reply

LONE = "a ball \ud800 rolls"


def test_lone_surrogates_are_replaced_and_pairs_become_characters() -> None:
    assert well_formed(LONE) == "a ball \ufffd rolls"
    assert well_formed("\ud83d\ude00 \udc80") == "😀 \ufffd"
    assert well_formed("😀 é") == "😀 é"


def test_a_judges_text_can_always_be_written() -> None:
    assert Reply(LONE).text.encode() == "a ball \ufffd rolls".encode()


def test_a_prompt_that_cannot_be_written_is_refused_by_name_before_anything_is_judged(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("a good one", LONE)))
    with pytest.raises(ValueError, match=r"prompts\.jsonl:2: the prompt 'a ball"):
        read_prompts(path)
    with pytest.raises(ValueError, match="surrogate"):
        check_prompt(LONE, "--prompt")


def module_patterns() -> dict[str, re.Pattern]:
    """Every compiled pattern that a module of the package keeps."""
    found: dict[str, re.Pattern] = {}
    for module in pkgutil.walk_packages(cac_align.__path__, "cac_align."):
        source = Path(module.module_finder.path) / (module.name.rpartition(".")[2] + ".py")
        if module.ispkg or not source.is_file() or "re.compile" not in source.read_text(encoding="utf-8"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, re.Pattern):
                found[f"{module.name}.{name}"] = value
    return found


PATTERNS = module_patterns()
ATOMS = (
    " ",
    "\n",
    "a",
    "0",
    "0 ",
    "*",
    "-",
    "frame ",
    "alignment score ",
    "alignment score: *",
    "( 1 ",
    "<",
    "<|",
    "9.",
)
HEADS = ("", "alignment score", "physics score (", "frame", "Frame 1", "{", "<answer>", "<type>", "(sample ", "a -> ")


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_take_time_in_proportion_to_the_text(name: str) -> None:
    """6,000 spaces behind "alignment score" once held the interpreter for more than a minute."""
    pattern = PATTERNS[name]
    for head in HEADS:
        for atom in ATOMS:
            text = head + atom * (6000 // len(atom)) + "!"
            given = text.encode() if isinstance(pattern.pattern, bytes) else text
            started = time.process_time()
            pattern.search(given)
            pattern.fullmatch(given)
            assert time.process_time() - started < 1.0, (head, atom)
