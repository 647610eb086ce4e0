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
