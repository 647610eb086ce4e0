"""The doctor of GenRL, Pref-GRPO, TeleBoost, vbvr-rl, FastVideo and miles_diffusion: our recipes are right, each trap is found."""

from pathlib import Path

import pytest

from cac_align.plugins.doctor.checklist import doctor

RECIPES = Path(__file__).parents[2] / "recipes" / "hosts"
FILES = {
    "genrl": "genrl_wan21_1_3b.yaml",
    "pref-grpo": "pref_grpo_wan21.sh",
    "teleboost": "teleboost.overrides",
    "vbvr-rl": "vbvr_rl_wan22_5b.yaml",
    "fastvideo": "fastvideo_promptrl_wan21_1_3b.yaml",
    "miles-diffusion": "miles_diffusion.sh",
}
SCRIPTED = "tests.support.hosting:scripted"


@pytest.fixture(autouse=True)
def reward(monkeypatch):
    monkeypatch.setenv("CAC_ALIGN_REWARD", SCRIPTED)


def wrong(host, folder, old="", new=""):
    """The names of the checks that fail for our recipe, in which ``old`` was replaced by ``new``."""
    text = (RECIPES / FILES[host]).read_text().replace("http://127.0.0.1:8000", SCRIPTED)
    assert old in text
    path = folder / FILES[host]
    path.write_text(text.replace(old, new, 1))
    return {check.name for check in doctor(host, path) if check.ok is False}


@pytest.mark.parametrize("host", FILES)
def test_our_recipes_are_right(host, tmp_path):
    assert wrong(host, tmp_path) == set()


@pytest.mark.parametrize(
    "host, old, new, name",
    [
        # A name that GenRL does not know, without a module: it scores 0 and says nothing.
        ("genrl", "reward_module: cac_align.plugins.genrl", "reward_module: null", "reward"),
        ("genrl", "reward_fn: {cac_unified: 1.0}", "reward_fn: {cac_unifed: 1.0}", "reward"),
        ("genrl", "eval_reward_fn: {cac_unified_eval: 1.0}", "eval_reward_fn: {cac_unified: 1.0}", "evaluation"),
        ("genrl", "eval_reward_fn: {cac_unified_eval: 1.0}", "eval_reward_fn: null", "evaluation"),
        ("genrl", "batch_size: 2 ", "batch_size: 3 ", "groups"),
        ("pref-grpo", "-m cac_align.plugins.pref_grpo ", "", "command"),
        ("pref-grpo", "videoalign:1.0", "unifiedreward_flex:1.0", "reward"),
        ("pref-grpo", "--use_group ", "", "groups"),
        ("teleboost", "trainer.use_rm=false\n", "", "reward model"),
        ("teleboost", "name=step_rewards", "name=compute_score", "name"),
        ("teleboost", "# +reward", "+reward", "weight maps"),
        ("teleboost", ".ledger=", ".ledgr=", "reward_kwargs options"),
        ("vbvr-rl", "cac_unified\n", "vbvr_vlm\n", "reward"),
        ("vbvr-rl", "fps: 16", "fps: 24", "frame rate"),
        ("vbvr-rl", "fps: 16", "fps: 16\ntensor_parallel_size: 2", "ranks"),
        ("fastvideo", "promptrl.PromptRLMethod", "diffusion_nft.DiffusionNFTMethod", "method"),
        ("fastvideo", "fps: 16", "fps: 24", "frame rate"),
        ("miles-diffusion", "--custom-rm-path cac_align.plugins.miles_diffusion.microgroup_rewards", "", "reward"),
        (
            "miles-diffusion",
            "--advantage-estimator",
            "--group-rm --eval-prompt-data x y --advantage-estimator",
            "groups",
        ),
        ("miles-diffusion", "--advantage-estimator", "--reward-key avg --advantage-estimator", "reward key"),
    ],
)
def test_a_trap_is_found(host, old, new, name, tmp_path):
    assert wrong(host, tmp_path, old, new) == {name}


@pytest.mark.parametrize("value", ["$N", ""])  # "": the flag has lost its value
def test_a_value_that_is_no_number_names_the_file(value, tmp_path):
    with pytest.raises(ValueError, match=FILES["miles-diffusion"]):
        wrong("miles-diffusion", tmp_path, "--n-samples-per-prompt 16", f"--n-samples-per-prompt {value}")


def test_a_reward_that_nobody_named_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("CAC_ALIGN_REWARD")
    assert wrong("genrl", tmp_path) == wrong("vbvr-rl", tmp_path) == {"environment reward"}
