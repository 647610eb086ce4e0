"""What the processes of a stage share: micro-batches of one batch, and what each of them found."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cac_align.training.processes import gather_reasons, micro_batches
from tests.support.two_processes import run_two


def test_micro_batches_are_disjoint_complete_and_equally_many():
    parts = [micro_batches(range(16), 2, rank, 4) for rank in range(4)]
    assert [len(part) for part in parts] == [2] * 4
    assert sorted(item for part in parts for micro in part for item in micro) == list(range(16))
    with pytest.raises(
        ValueError, match="a batch of 6 cannot be cut into micro-batches of 2 on 2 processes; make it a multiple of 4"
    ):
        micro_batches(range(6), 2, 0, 2)


GATHER = """
import sys
from accelerate import Accelerator
from cac_align.cli.main import leave
from cac_align.training.processes import gather_reasons
from cac_align.training.samples import DataRecipe, Stage
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
stage = Stage("data", {}, {}, (), DataRecipe(max_unusable=0.3), 0, {"clip9/scan": "gone", f"clip{rank}/scan": f"torn {rank}"}, 10)
stage.leave_out_all(gather_reasons(accelerator, stage.bad))
found = sorted(stage.bad.items())
if rank == 1:
    stage.bad["clip5/look"] = "torn"
try:
    stage.leave_out_all(gather_reasons(accelerator, stage.bad))
except ValueError as error:
    print(f"{rank} {found} {error}\\n", end="", flush=True)
leave(0)
"""


def test_one_process_is_told_what_it_found():
    assert gather_reasons(SimpleNamespace(num_processes=1), {"clip0/scan": "torn"}) == {"clip0/scan": "torn"}


@pytest.mark.slow
def test_two_processes_count_what_either_left_out_and_stop_together(tmp_path):
    """Both know of clip9; each has one of its own: three of ten, the limit. One more on the second process stops both."""
    (tmp_path / "gather.py").write_text(GATHER)
    out = run_two([str(tmp_path / "gather.py")], {"PYTHONPATH": str(Path(__file__).parents[2])})
    assert out.returncode == 0, out.stderr[-3000:]
    said = sorted(line for line in out.stdout.splitlines() if line)
    assert len(said) == 2
    for rank, line in enumerate(said):
        found = "[('clip0/scan', 'torn 0'), ('clip1/scan', 'torn 1'), ('clip9/scan', 'gone')]"
        assert line.startswith(f"{rank} {found} 4 of 10 samples") and line.endswith("the last one, clip5/look: torn")
