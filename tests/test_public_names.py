"""The public names of the package: each one loads, and an unknown one says which exist."""

import pytest

import cac_align


@pytest.mark.parametrize("name", [name for name in cac_align.__all__ if name != "__version__"])
def test_every_public_name_loads(name):
    assert getattr(cac_align, name).__name__ == name


def test_unknown_names_say_what_exists():
    with pytest.raises(AttributeError, match="has no attribute 'Cac'; public names: Video"):
        _ = cac_align.Cac
    assert set(cac_align.__all__) <= set(dir(cac_align))
