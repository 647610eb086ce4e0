"""selection.jsonl: torn lines dropped, unchanged rows written once, the whole file in order at the end."""

import json
from dataclasses import dataclass

from cac_align.generation.selection_log import SelectionLog


@dataclass
class Chosen:
    prompt: str
    chosen: int

    def to_json(self):
        return {"prompt": self.prompt, "chosen": self.chosen}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_kill_tore_is_dropped_and_what_stands_is_not_written_twice(tmp_path):
    path = tmp_path / "selection.jsonl"
    log = SelectionLog(path)
    log.add(Chosen("b", 1))
    with path.open("a") as file:
        file.write('{"prompt": "a", "cho')
    log = SelectionLog(path)
    assert rows(path) == [{"prompt": "b", "chosen": 1}]
    log.add(Chosen("b", 1))
    log.add(Chosen("a", 0))
    assert rows(path) == [{"prompt": "b", "chosen": 1}, {"prompt": "a", "chosen": 0}]
    log.finish([Chosen("a", 0), Chosen("b", 2)])
    assert rows(path) == [{"prompt": "a", "chosen": 0}, {"prompt": "b", "chosen": 2}]


def test_other_prompts_of_former_calls_stay_after_those_of_this_one(tmp_path):
    path = tmp_path / "selection.jsonl"
    SelectionLog(path).finish([Chosen("a", 0), Chosen("b", 1), Chosen("c", 2)])
    log = SelectionLog(path)
    log.add(Chosen("d", 3))
    log.finish([Chosen("d", 3), Chosen("b", 0)])
    assert [(row["prompt"], row["chosen"]) for row in rows(path)] == [("d", 3), ("b", 0), ("a", 0), ("c", 2)]
