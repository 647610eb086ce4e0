"""One torch thread per test process: the models of the tests are too small to share between threads."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

pytest_plugins = [
    "tests.support.chat_server",
    "tests.support.judge_parts",
    "tests.support.rating_actions",
    "tests.support.bench_set",
]
