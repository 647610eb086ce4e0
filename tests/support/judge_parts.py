"""Fixtures of the small judge's tests: the texts of its lessons, its tokenizer and processor, and a pool of clips.

Imports stand inside: pytest loads this file for every test, and few of them need torch.
"""

import pytest


@pytest.fixture(scope="session")
def texts():
    from research.training.examples import tokenizer_texts
    from research.training.pool import MixtureConfig

    return tokenizer_texts("cac", MixtureConfig(), clips=16)


@pytest.fixture(scope="session")
def tokenizer(texts):
    from cac_align.miniature.models.judge import build_judge_tokenizer

    return build_judge_tokenizer(texts, 600)


@pytest.fixture(scope="session")
def processor(tokenizer):
    from cac_align.miniature.models.judge import build_processor
    from tests.support.small_judge import SMALL

    return build_processor(tokenizer, SMALL)


@pytest.fixture(scope="session")
def pool(tmp_path_factory):
    from research.training.pool import ClipPool, MixtureConfig

    return ClipPool.open(tmp_path_factory.mktemp("pool"), MixtureConfig(), 0, 40)
