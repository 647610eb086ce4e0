"""The command line's shared options: ``--set`` alone overrides a recipe, and every help text states its defaults."""

import argparse

import pytest

from cac_align.cli.main import build_parser, main, parse

RECIPE = "recipes/align/miniature.yaml"


def leaves(parser, name=()):
    """(words, parser) of every verb, those below another one included."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for action in below:
        for word, child in action.choices.items():
            yield from leaves(child, (*name, word))


LEAVES = dict(leaves(build_parser()))


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["align", RECIPE, "lr=3"], "--set lr=3"),
        (["align", RECIPE, "--lr", "3"], "--set lr=3"),
        (["align", RECIPE, "--lr=3"], "--set lr=3"),
        (["align", RECIPE, "--out"], "--set out=VALUE"),
        (["align", "out=DIR"], "--set out=DIR"),
        (["train", "stage1", "data.folder=DIR"], "--set data.folder=DIR"),
        (["train", "stage1", RECIPE, "--run.lr", "3"], "--set run.lr=3"),
        (["score", "a.mp4", "components.cac.temperature=2"], "--set components.cac.temperature=2"),
        (["best-of-n", "--prompts", "p", "--out", "o", "--num-frames", "9"], "--set num_frames=9"),
        (["evaluate", "bench", "records.jsonl", "normalise=range"], "--set normalise=range"),
        (["data", "split", "folder", "--seed", "3"], "--set seed=3"),
        (["serve", "normalise=range"], "--set normalise=range"),
    ],
)
def test_an_override_written_otherwise_is_told_how_it_is_written(arguments, hint, capsys):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2 and capsys.readouterr().err.rstrip().endswith(f"write {hint}")


def test_a_verb_without_a_recipe_speaks_of_no_override(capsys):
    with pytest.raises(SystemExit):
        main(["world", "--n", "2", "--out", "o", "lr=3"])
    assert "--set" not in capsys.readouterr().err


def test_a_file_whose_name_looks_like_an_override_can_be_scored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=3.mp4").touch()
    assert [str(video) for video in parse(["score", "seed=3.mp4", "--prompt", "p"]).videos] == ["seed=3.mp4"]


def test_set_is_repeatable_and_an_option_is_not_abbreviated(capsys):
    assert parse(["align", RECIPE, "--set", "a=1", "--set=b=2"]).overrides == ["a=1", "b=2"]
    with pytest.raises(SystemExit):
        parse(["align", RECIPE, "--se", "a=1"])


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_option_has_a_help_text_that_states_its_default(words):
    parser = LEAVES[words]
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, f"{' '.join(words)} {action.dest} has no help"
        if action.default not in (None, argparse.SUPPRESS) and type(action.default) in (int, float, str):
            assert f"default: {action.default}" in text, f"{' '.join(words)} {action.dest}"
