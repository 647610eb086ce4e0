"""doctor: our own recipes pass, every trap that a config can show is found and mended, nothing is guessed."""

import ast
import importlib.abc
import inspect
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from omegaconf import OmegaConf

from cac_align.cli.main import main as cli
from cac_align.core.weights import shipped
from cac_align.plugins.common.host import HostOptions
from cac_align.plugins.doctor import checklist as doctor_module
from cac_align.plugins.doctor.checklist import (
    CONFIG_CHECKS,
    HOSTS,
    checklist,
    doctor,
    host_name,
    to_json,
    torchvision_check,
)
from cac_align.plugins.doctor.checks import check_modules
from cac_align.plugins.doctor.config_lines import CONFIG_LINES
from cac_align.plugins.doctor.host_configs import read_config
from cac_align.plugins.doctor.hosts.flow_factory import check_flow_factory
from cac_align.plugins.doctor.hosts.flow_grpo import check_flow_grpo
from cac_align.plugins.doctor.hosts.unirl import check_unirl
from cac_align.plugins.doctor.hosts.verl_omni import check_verl_omni
from cac_align.plugins.verl_omni import compute_score
from tests.support.hosting import scripted, serving

PLUGINS = Path(doctor_module.__file__).parents[1]
RECIPES = Path(__file__).parents[2] / "recipes" / "hosts"


class ConfigDict(dict):
    """As much of ml_collections.ConfigDict as a config file uses."""

    def __init__(self, values=()):
        super().__init__(values)

    __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__

    def to_dict(self):
        return {key: value.to_dict() if isinstance(value, ConfigDict) else value for key, value in self.items()}


@pytest.fixture
def ml_collections(monkeypatch):
    module = ModuleType("ml_collections")
    module.ConfigDict = ConfigDict
    monkeypatch.setitem(sys.modules, "ml_collections", module)


def wrong(checks):
    return {check.name: check for check in checks if check.ok is False}


def ff(**changes):
    """Our Flow-Factory recipe, changed: section__key=value."""
    config = yaml.safe_load((RECIPES / "flow_factory_wan21_1_3b.yaml").read_text())
    for entry in config["rewards"]:
        entry["reward"] = "recipe.json"  # no service runs here
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            config[section][key] = value
        else:
            config[section] = value
    return config


# ---- this environment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "torch, vision, requires, ok, words",
    [
        ("2.15.0", "0.29.2", ["numpy", "torch==2.15.0", "pillow"], True, "fits"),
        ("2.15.0+cu132", "0.29.2+cu132", ["torch==2.15.0"], True, "fits"),
        ("2.13.0+cpu", "0.29.2", ["torch==2.15.0"], False, "built for torch 2.15.0, installed is torch 2.13.0+cpu"),
        ("2.15.0+cpu", "0.29.2+cu132", ["torch==2.15.0"], False, "different builds"),
        ("2.15.0", None, [], None, "not installed"),
    ],
)
def test_a_torchvision_that_does_not_match_torch_is_named(torch, vision, requires, ok, words):
    check = torchvision_check(torch, vision, requires)
    assert check.ok is ok and words in check.text
    assert ("pip install 'torch==" in check.fix) is (ok is False)


def test_a_torchvision_that_fits_by_its_version_and_cannot_be_imported(monkeypatch):
    class Broken(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    check = wrong(doctor("trl"))["torchvision"]
    assert "fits torch" in check.text and "operator torchvision::nms does not exist" in check.text


def test_this_environment_passes():
    checks = {check.name: check for check in doctor()}
    assert checks["torchvision"].ok is True and checks["python"].ok is True and checks["transformers"].ok is True


def test_without_a_host_the_machine_is_checked(monkeypatch):
    names = [check.name for check in doctor()]
    assert {"GPU", "disk", "packages", "FFmpeg", "weights"} <= set(names) and names.count("weights") == 3
    assert "GPU" not in [check.name for check in doctor("trl")]
    monkeypatch.setattr("cac_align.core.weights.weights_folder", lambda: Path("nowhere"))
    shipped.cache_clear()
    monkeypatch.setattr("cac_align.plugins.doctor.machine.read_manifest", lambda: {"cac": {}})
    assert [check.ok for check in doctor() if check.name == "weights"] == [False]


@pytest.mark.parametrize("text", ["flow-grpo", "flow_grpo", "Flow-GRPO"])
def test_a_hosts_name_with_hyphens_or_underscores(text):
    assert host_name(text) == "flow_grpo" and [check.name for check in doctor(text)] == [
        check.name for check in doctor("flow_grpo")
    ]
    assert checklist(text, []) == checklist("flow_grpo", [])


def test_unknown_hosts_and_files_are_errors(tmp_path):
    with pytest.raises(ValueError, match="unknown host 'veRL'; expected one of flow-factory"):
        doctor("veRL")
    with pytest.raises(ValueError, match="no such config file"):
        doctor("unirl", tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ValueError, match="expected a mapping"):
        doctor("unirl", tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="not YAML"):
        doctor("flow-factory", tmp_path / "broken.yaml")
    with pytest.raises(ValueError, match="list.yaml: whose config is it"):
        doctor(None, tmp_path / "list.yaml")
    with pytest.raises(ValueError, match="no config file that we read"):
        doctor("trl", tmp_path / "list.yaml")


def test_the_help_names_every_host(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")  # no name is broken at its hyphen
    with pytest.raises(SystemExit):
        cli(["doctor", "--help"])
    said = capsys.readouterr().out.split()
    assert [host for host in HOSTS if host not in said] == []


@pytest.mark.parametrize("host", list(HOSTS))
def test_every_host_gets_its_lines_and_its_layout(host):
    text = checklist(host, doctor(host))
    assert "layout and range" in text and CONFIG_LINES[host].splitlines()[0] in text
    assert to_json(doctor(host)).count("\n") == len(doctor(host)) - 1


# ---- our own recipes ---------------------------------------------------------------------------------------------------


def test_our_recipes_have_nothing_wrong(ml_collections, monkeypatch):
    with serving(scripted()) as (url, _):
        readers = {
            "flow-factory": "flow_factory_wan21_1_3b.yaml",
            "flow_grpo": "flow_grpo_wan21_1_3b.py",
            "unirl": "unirl_wan21_1_3b.yaml",
            "verl-omni": "verl_omni.overrides",
        }
        original = read_config

        def at_this_service(host, path):
            config = original(host, path)
            return yaml.safe_load(yaml.safe_dump(config).replace("http://127.0.0.1:8000", url))

        monkeypatch.setattr(doctor_module, "read_config", at_this_service)
        for host, file in readers.items():
            assert wrong(doctor(host, RECIPES / file)) == {}, host


def test_a_service_that_does_not_answer_is_wrong():
    config = ff()
    config["rewards"][0]["reward"] = "http://127.0.0.1:9"
    found = wrong(check_flow_factory(config))["cac service"]
    assert "127.0.0.1:9" in found.text and "cac-align serve" in found.fix


def test_a_component_the_service_lacks_is_wrong():
    with serving(scripted()) as (url, _):
        config = ff()
        config["rewards"] = [{**config["rewards"][0], "reward": url, "component": "beauty"}]
        assert "offers unified+cac, unified, cac, not 'beauty'" in wrong(check_flow_factory(config))["cac service"].text


# ---- Flow-Factory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, name, words",
    [
        ({"scheduler__sde_steps": None}, "step-0 noise", "sde_steps: [1, 2"),
        ({"scheduler__sde_steps": [0, 1]}, "step-0 noise", "sde_steps: [1, 2"),
        ({"model__model_type": "flux1"}, "model", "wan2_t2v"),
        ({"config_file": "config/deepspeed/deepspeed_zero3.yaml"}, "sharding", "zero2"),
        ({"rewards": []}, "reward", "cac_align.plugins.flow_factory.CaCReward"),
        ({"rewards": [{"name": "x", "reward_model": "CaC"}]}, "x path", "flow_factory.CaCUnifiedReward"),
        ({"rewards": [{"name": "x", "reward_model": "cac_align.plugins.flow_factory.CaC"}]}, "x path", "CaCReward"),
        ({"rewards": [{"name": "x", "reward_model": "a.B", "server_url": "http://h"}]}, "x transport", "our class"),
    ],
)
def test_flow_factory_traps(changes, name, words):
    found = wrong(check_flow_factory(ff(**changes)))
    assert name in found and words in found[name].fix
    assert name not in wrong(check_flow_factory(ff()))


def test_flow_factory_short_schedules_are_said_to_break():
    config = ff(scheduler__sde_steps=None, train__num_inference_steps=10)
    assert "the sample is destroyed" in wrong(check_flow_factory(config))["step-0 noise"].text
    assert "step-0 noise" not in wrong(
        check_flow_factory(ff(scheduler__dynamics_type="CPS", scheduler__sde_steps=None))
    )


def test_flow_factory_knows_a_groupwise_reward(tmp_path):
    recipe = tmp_path / "pairs.yaml"
    recipe.write_text("components: {think: {kind: unified_think, model: 'http://127.0.0.1:1/v1', served_model: m}}")
    entry = {"name": "pairs", "reward_model": "cac_align.plugins.flow_factory.GroupReward", "reward": str(recipe)}
    found = {check.name: check for check in check_flow_factory(ff(rewards=[entry]))}
    assert found["pairs path"].ok and found["pairs recipe"].ok and "pairs async" not in found
    assert found["pairs groups"].ok is None and "group_contiguous" in found["pairs groups"].fix
    assert found["evaluation"].ok is None and "no number of ours" in found["evaluation"].text
    whole = {
        check.name: check for check in check_flow_factory(ff(rewards=[entry], data__sampler_type="group_contiguous"))
    }
    assert whole["pairs groups"].ok
    for change, name in (
        ({"async_reward": True}, "pairs async"),
        ({"reward": "http://127.0.0.1:1"}, "pairs reward"),
        ({"reward": str(RECIPES.parent / "reward" / "miniature.yaml")}, "pairs recipe"),
        ({"reward_model": "cac_align.plugins.flow_factory.CaCUnifiedReward"}, "pairs recipe"),
    ):
        assert name in wrong(check_flow_factory(ff(rewards=[entry | change])))


def test_flow_factory_options_and_recipes(tmp_path):
    config = ff()
    config["rewards"][0]["legder"] = "x"
    assert "did you mean 'ledger'" in wrong(check_flow_factory(config))["cac options"].text
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("normalise: group\ncomponents: {unified: {kind: unified}, cac: {kind: cac}}\n")
    config = ff()
    config["rewards"][0]["reward"] = str(recipe)
    assert "fragments of groups" in wrong(check_flow_factory(config))["cac normalisation"].text
    recipe.write_text("normalise: range\ncomponents: {unified: {kind: unified}, cac: {kind: cac}}\n")
    assert "cac normalisation" not in wrong(check_flow_factory(config))


def test_flow_factory_remarks_are_not_verdicts():
    remarks = {
        check.name: check
        for check in check_flow_factory(ff(train__advantage_aggregation="gdpo", train__global_std=True))
        if check.ok is None
    }
    assert "not the paper's mean" in remarks["aggregation"].text and "global_std: false" in remarks["advantage"].fix
    big = {check.name: check for check in check_flow_factory(ff(train__unique_sample_num_per_epoch=48))}
    # 48 × 16 / 8 = 96 videos of 81 × 480 × 832 × 3 × 4 bytes
    assert big["host memory"].ok is None and "96 per rank, 37.3 GB" in big["host memory"].text
    bare = ff()
    bare["rewards"][0].pop("reward", None)
    assert "adapters refuse" in wrong(check_flow_factory(bare))["cac reward"].text


@pytest.mark.parametrize(
    "train, data, processes, batch_size, words",
    [
        # 2 groups of 16 on 8 ranks: 4 videos a rank, spread; calls of 4 or more hold them all
        ({}, {}, 8, 4, "groups of 16, spread over 8 ranks (distributed_k_repeat); a rank makes 4 videos"),
        ({}, {}, 8, 3, None),
        # one process holds both groups, one after the other: calls of 16 hold one each, of 24 one and a half
        ({}, {}, 1, 16, "groups of 16, on one rank each (group_contiguous); a rank makes 32 videos"),
        ({}, {}, 1, 24, None),
        ({}, {"sampler_type": "distributed_k_repeat"}, 1, 16, None),
        # 8 groups for 8 ranks
        ({"unique_sample_num_per_epoch": 8}, {}, 8, 16, "on one rank each (group_contiguous); a rank makes 16 videos"),
        ({"unique_sample_num_per_epoch": 8}, {}, 8, 8, None),
    ],
)
def test_flow_factorys_calls_hold_whole_groups(train, data, processes, batch_size, words):
    config = ff(num_processes=processes)
    config["train"] |= train
    config["data"] |= data
    config["rewards"][0]["batch_size"] = batch_size
    checks = {check.name: check for check in check_flow_factory(config)}
    assert checks["cac groups"].ok is (words is not None) and (words or "batch_size: ") in (
        checks["cac groups"].text if words else checks["cac groups"].fix
    )
    config["rewards"][0]["on_missing"] = "raise"
    assert {check.name: check for check in check_flow_factory(config)}["cac groups"].ok is True


def test_flow_factorys_other_keys():
    config = ff()
    config["rewards"][0] |= {"applicable_datasets": ["a"], "weight": {"a": 0.5}, "group_size": 8}
    found = wrong(check_flow_factory(config))
    assert set(found) == {"cac group_size"} and found["cac group_size"].fix == "group_size: 16 on cac"
    found = {check.name: check for check in check_flow_factory(ff())}
    assert found["evaluation"].ok is True and found["config_file"].ok is None  # this is not Flow-Factory's folder
    assert found["deepspeed"].ok is None and "deepspeed_zero2.yaml needs deepspeed" in found["deepspeed"].text
    found = {check.name: check for check in check_flow_factory(ff(eval__num_frames=17))}["evaluation"]
    assert found.ok is None and found.fix == "eval: {num_frames: 81}"
    others = {check.name: check for check in check_flow_factory(ff(eval_rewards=[{"reward_model": "PickScore"}]))}
    assert "none of its eval_rewards is ours" in others["evaluation"].text


def test_a_modules_absence_is_wrong_only_in_the_hosts_own_interpreter(tmp_path, monkeypatch):
    needed = {"no_such_module": "the recipe"}
    assert [check.ok for check in check_modules("no_such_host", needed)] == [None]
    (tmp_path / "host_in_a_checkout").mkdir()
    (tmp_path / "host_in_a_checkout" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    (check,) = check_modules("host_in_a_checkout", needed)
    assert check.ok is False and check.fix == "pip install no_such_module"
    assert [check.ok for check in check_modules("host_in_a_checkout", {"numpy": "it"})] == [True]


# ---- flow_grpo, UniRL, verl-omni -------------------------------------------------------------------------------------------


def test_flow_grpo_traps(ml_collections):
    good = read_config("flow_grpo", RECIPES / "flow_grpo_wan21_1_3b.py")
    assert good["reward_fn"] == {"cac": 0.5, "unifiedreward_video": 0.5}
    assert "reward_fn" in wrong(check_flow_grpo({**good, "reward_fn": {"video_ocr": 1.0}}))
    found = wrong(check_flow_grpo({**good, "reward_fn": {"cac": 1.0, "unifiedreward": 1.0}}))
    assert "scores images" in found["reward unifiedreward"].text
    assert "epochs" in wrong(check_flow_grpo({**good, "num_epochs": 2}))
    groups = {check.name: check for check in check_flow_grpo(good)}["groups"]
    assert groups.ok and "a call holds 2 videos, a group 16" in groups.text


def test_flow_grpo_launch_scripts(tmp_path):
    (tmp_path / "c.py").write_text(
        "def get_config(name='a'):\n"
        "    return {'reward_fn': {'cac': 1.0}, 'num_epochs': 1, 'sample': {'train_batch_size': 2, 'num_image_per_prompt': 16}}\n"
    )
    script = tmp_path / "run.sh"
    command = (
        "# export NOTHING=1\n"
        "accelerate launch --num_processes 8 {launcher} scripts/train_wan2_1.py \\\n"
        f"  --config={tmp_path / 'c.py'}:wan --config.num_epochs=122 --config.sample.train_batch_size {{batch}}\n"
    )
    ours = (
        "-m cac_align.plugins.flow_grpo --reward tests.support.hosting:scripted --max-unscored-share=0.05 --fps {fps}"
    )
    script.write_text(command.format(launcher=ours.format(fps=16), batch=4))
    config = read_config("flow_grpo", script)
    assert config["num_epochs"] == 122 and config["sample"]["train_batch_size"] == 4
    assert config["launch"]["processes"] == 8 and config["launch"]["options"]["max_unscored_share"] == "0.05"
    found = list(check_flow_grpo(config))
    assert (
        wrong(found) == {} and "at most 5.0% unscored" in {check.name: check.text for check in found}["command policy"]
    )
    script.write_text(command.format(launcher="", batch=3))
    found = wrong(check_flow_grpo(read_config("flow_grpo", script)))
    assert set(found) == {"command", "groups"} and "8 processes × 3 videos" in found["groups"].text
    script.write_text(command.format(launcher=ours.format(fps="fast"), batch=4))
    assert "expected float, received 'fast'" in wrong(check_flow_grpo(read_config("flow_grpo", script)))["command"].text
    script.write_text("ls\n")
    with pytest.raises(ValueError, match="expected a command with a script and --config FILE"):
        read_config("flow_grpo", script)


def test_world_r1s_own_rewards_take_videos(ml_collections):
    good = read_config("flow_grpo", RECIPES / "flow_grpo_wan21_1_3b.py")
    assert wrong(check_flow_grpo({**good, "reward_fn": {"cac": 1.0, "reward_3d": 1.0, "reward_general": 1.0}})) == {}


def test_flow_grpo_configs_are_python(tmp_path):
    file = tmp_path / "c.py"
    file.write_text("def get_config(name='a'):\n    return {'reward_fn': {'cac': 1.0}, 'name': name}\n")
    assert read_config("flow_grpo", f"{file}:wan")["name"] == "wan" and read_config("flow_grpo", file)["name"] == "a"
    file.write_text("import no_such_module\n")
    with pytest.raises(ValueError, match="could not be run as a config: ModuleNotFoundError"):
        read_config("flow_grpo", file)


def test_unirl_traps():
    remote = {
        "_target_": "unirl.reward.remote.RemoteRewardBackend",
        "config": {"base_url": "http://h", "required_rewards": ["cac"]},
    }
    found = wrong(check_unirl({"reward": {"backend": remote}}))
    assert found["fps"].fix == "video_fps: 16" and found["media"].fix == "input_kind: video"
    remote["config"] |= {"raise_on_failure": False, "sub_metric_reduce": "mean", "video_fps": 16, "input_kind": "video"}
    assert set(wrong(check_unirl({"reward": {"backend": remote}}))) == {"failures", "sub-metrics"}
    assert (
        "CaCBackend"
        in wrong(check_unirl({"reward": {"backend": {"_target_": "unirl.reward.local.x.Y"}}}))["backend"].fix
    )


def test_dancegrpos_commands(tmp_path, monkeypatch):
    for name in fields(HostOptions):
        monkeypatch.delenv(f"CAC_ALIGN_{name.name.upper()}", raising=False)
    check = CONFIG_CHECKS["videoalign"]
    command = read_config("videoalign", RECIPES / "dancegrpo_hunyuan.sh")
    assert list(wrong(check(command))) == ["environment reward"]
    monkeypatch.setenv("CAC_ALIGN_REWARD", "tests.support.hosting:scripted")
    assert wrong(check(command)) == {}
    assert list(wrong(check({**command, "--vq_coef": "0.0"}))) == ["keys"]  # with its --mq_coef 0.0: nothing is trained
    script = tmp_path / "run.sh"
    script.write_text("torchrun --nproc_per_node=8 fastvideo/train_grpo_skyreels_i2v.py --fps 8\n")
    monkeypatch.setenv("CAC_ALIGN_GROUP_SIZE", "8")
    assert list(wrong(check(read_config("videoalign", script)))) == ["command", "reward", "environment group_size"]


def test_verl_omni_traps(tmp_path):
    script = tmp_path / "run.sh"
    script.write_text(
        "python -m verl_omni.main \\\n"
        "    reward.reward_manager.name=VisualRewardManager \\\n"
        "    reward.custom_reward_function.path=verl_omni/utils/reward_score/hpsv3_reward.py \\\n"
        "    +reward.reward_functions.cac.path=pkg://cac_align.plugins.verl_omni \\\n"
        "    +reward.reward_functions.cac.name=compute_score \\\n"
        "    +reward.reward_functions.cac.fps=8 +not a line\n"
        "    +reward.reward_functions.cac.on_missing=neutral \\\n"
    )
    config = read_config("verl-omni", script)
    assert config["reward"]["reward_functions"]["cac"]["on_missing"] == "neutral"
    found = wrong(check_verl_omni(config))
    assert set(found) == {"cac failures", "cac on_missing", "cac reward", "manager", "custom_reward_function"}
    assert "required=true" in found["cac failures"].fix
    script.write_text(script.read_text() + "    reward.custom_reward_function.path=null\n")  # the later override counts
    assert "custom_reward_function" not in wrong(check_verl_omni(read_config("verl-omni", script)))
    assert "reward" in wrong(check_verl_omni({"reward": {"reward_functions": {}}}))


# ---- what a right-looking config hides ---------------------------------------------------------------------------------


def test_unirls_recipe_replaces_the_reward_that_it_is_composed_with():
    """Hydra merges mappings: options of the reward in wan21_t2v.yaml would reach our spec, which does not take them."""
    theirs = {
        "reward": {
            "_target_": "unirl.reward.service.RewardService",
            "backend": {
                "_target_": "theirs",
                "config": {"_target_": "PickScoreSpec", "device": "cuda", "model_id": "x"},
            },
        },
        "data_source": {"args": {"run": {"data_path": "datasets/pickscore/train.txt"}}},
        "stack": {"num_updates_per_batch": 2},
    }
    ours = OmegaConf.load(RECIPES / "unirl_wan21_1_3b.yaml")
    composed = OmegaConf.to_container(OmegaConf.merge(theirs, ours), resolve=True)
    spec = composed["reward"]["backend"]["config"]
    assert spec == {
        "_target_": "cac_align.plugins.unirl.CaCSpec",
        "reward": "http://127.0.0.1:8000",
        "fps": 16,
        "ledger": "ledger.jsonl",
    }
    assert composed["stack"]["num_updates_per_batch"] == 1 and "pickscore" not in str(composed["data_source"])


def test_a_unirl_reward_written_in_place_over_another_recipe_is_wrong():
    spec = {"_target_": "cac_align.plugins.unirl.CaCSpec", "fps": 16, "ledger": "l.jsonl"}
    spec["reward"] = "tests.support.hosting:scripted"
    backend = {"_target_": "cac_align.plugins.unirl.CaCBackend", "config": spec}
    config = {"defaults": ["wan21_t2v", "_self_"], "reward": {"backend": backend}, "adv_use_global_std": False}
    assert list(wrong(CONFIG_CHECKS["unirl"](config))) == ["composition"]
    assert wrong(CONFIG_CHECKS["unirl"](config | {"defaults": ["_self_"]})) == {}
    for change, name in (({"layout": "CTHW"}, "reward layout"), ({"_target_": "other"}, "backend config")):
        changed = config | {"defaults": ["_self_"], "reward": {"backend": backend | {"config": spec | change}}}
        assert list(wrong(CONFIG_CHECKS["unirl"](changed))) == [name]


def test_every_option_of_ours_that_a_host_may_set_is_taken_by_its_adapter():
    """Hydra passes unknown keys to the spec, which raises; verl-omni drops what is not in the signature without a word."""
    options = {item.name for item in fields(HostOptions)}
    tree = ast.parse((PLUGINS / "unirl.py").read_text(encoding="utf-8"))
    (spec,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "CaCSpec"]
    assert {line.target.id for line in spec.body if isinstance(line, ast.AnnAssign)} == options - {"layout"} | {
        "batch_size"
    }
    taken = set(inspect.signature(compute_score).parameters)
    assert options - taken == {"on_missing", "on_missing_evaluation", "group_size", "max_unscored_share", "min_seen"}
    entry = {
        "path": "pkg://cac_align.plugins.verl_omni",
        "name": "compute_score",
        "required": True,
        "reward": "tests.support.hosting:scripted",
        "ledger": "l.jsonl",
        "fps": 16,
    }
    section = {"reward_manager": {"name": "MultiVisualRewardManager"}, "reward_functions": {"cac": entry}}
    assert wrong(CONFIG_CHECKS["verl-omni"]({"reward": section})) == {}
    section["reward_functions"]["cac"] = entry | {"group_size": 16}
    assert list(wrong(CONFIG_CHECKS["verl-omni"]({"reward": section}))) == ["cac group_size"]


def test_flow_factorys_classes_need_their_component_in_the_recipe(tmp_path):
    (tmp_path / "one.yaml").write_text("components: {cac: {kind: cac}}\n")
    config = ff()
    for entry in config["rewards"]:
        entry["reward"] = str(tmp_path / "one.yaml")
    assert "has cac, not 'unified'" in wrong(check_flow_factory(config))["unified recipe"].text
    assert "cac recipe" not in wrong(check_flow_factory(config))


def test_only_both_components_once_each_are_the_papers_mean():
    config = ff()
    found = {check.name: check for check in check_flow_factory(config)}
    assert found["aggregation"].ok is True and "the paper's mean" in found["aggregation"].text
    config["rewards"][1]["reward_model"] = "cac_align.plugins.flow_factory.CaCUnifiedReward"
    found = {check.name: check for check in check_flow_factory(config)}
    assert found["aggregation"].ok is None and "not the paper's mean" in found["aggregation"].text


def test_the_models_own_frame_rate_is_what_the_reward_must_be_told():
    config = ff()
    config["train"]["frame_rate"] = 24.0
    assert "the reward takes the videos for 16 fps" in wrong(check_flow_factory(config))["cac frame rate"].text
    for entry in config["rewards"]:
        entry["fps"] = 24
    assert "cac frame rate" not in wrong(check_flow_factory(config))
