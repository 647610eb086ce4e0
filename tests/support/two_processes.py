"""Two real processes on this machine's CPU, joined by gloo. `accelerate launch --cpu --num_processes 2` starts one, without a word."""

import os
import subprocess
import sys

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def run_two(command, env):
    """The command (a script and its arguments, or -m and a module) in two processes."""
    return subprocess.run(
        [*LAUNCH, *command], env={**os.environ, "ACCELERATE_USE_CPU": "true", **env}, capture_output=True, text=True
    )
