"""The small Wan: its parts, its training, and the weights that ship."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cac_align.miniature import train_wan as training
from cac_align.miniature.train_wan import Schedule, VaeRecipe, WanRecipe
from cac_align.miniature.wan import WEIGHTS, MiniWan, build_pipeline, build_tokenizer, build_vae
from cac_align.miniature.world import PROMPT_SEEDS, STUDIO, VOCABULARY, make_clip, make_prompts, parse_prompt

TINY = MiniWan(vae_dim=8, vae_mult=(1, 1, 1), text_dim=16, text_heads=2, dim=24, heads=2, layers=1, ffn_dim=32, freq_dim=16)
QUICK = Schedule(steps=3, batch=2, warmup=1, save_every=1, log_every=1)
ROOT = Path(__file__).parents[1]


def same_weights(one: Path, two: Path) -> bool:
    from safetensors.torch import load_file

    files = sorted(file.relative_to(one) for file in one.rglob("*.safetensors"))
    assert files, "nothing to compare"
    tensors = [(load_file(one / file), load_file(two / file)) for file in files]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in tensors)


# ---- the parts ----------------------------------------------------------------------------------------------------


def test_every_studio_prompt_is_whole_words_and_fits():
    tokenizer = build_tokenizer(VOCABULARY, MiniWan().prompt_tokens)
    for prompt in make_prompts(PROMPT_SEEDS[:300], STUDIO):
        ids = tokenizer(prompt).input_ids
        assert len(ids) == len(prompt.split()) + 1 <= MiniWan().prompt_tokens
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == prompt


def test_words_outside_the_vocabulary_are_unknown_and_the_world_names_them():
    tokenizer = build_tokenizer(["a", "red", "ball"], 8)
    assert tokenizer("a red zebra").input_ids == [3, 4, tokenizer.unk_token_id, 1]
    assert tokenizer("").input_ids == [1]
    with pytest.raises(ValueError, match="zebra"):
        parse_prompt("a red zebra rolls to the right on grass")
    with pytest.raises(ValueError, match="distinct words"):
        build_tokenizer(["a", "red ball"], 8)


def test_a_seed_is_all_that_decides_the_first_weights():
    torch.manual_seed(5)
    first = build_pipeline(TINY, VOCABULARY, seed=1).transformer.state_dict()
    follows = torch.rand(1)
    torch.manual_seed(6)
    second = build_pipeline(TINY, VOCABULARY, seed=1).transformer.state_dict()
    other = build_pipeline(TINY, VOCABULARY, seed=2).transformer.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
    torch.manual_seed(5)
    assert torch.equal(follows, torch.rand(1)), "building must not move torch's global random state"


def test_strides_are_the_real_ones():
    vae = build_vae(TINY)
    latents = vae.encode(torch.zeros(1, 3, 33, 64, 64)).latent_dist.mode()
    assert latents.shape == (1, 16, 9, 8, 8)
    assert vae.decode(latents).sample.shape == (1, 3, 33, 64, 64)


def test_the_unclamped_decoder_is_the_decoder_without_its_clamp():
    torch.manual_seed(0)
    vae = build_vae(TINY)
    latents = 30 * torch.randn(1, 16, 3, 2, 2)
    free = training.decode_unclamped(vae, latents)
    assert free.abs().max() > 1
    assert torch.equal(free.clamp(-1, 1), vae.decode(latents).sample)


def test_embeddings_are_those_of_the_pipeline():
    pipeline = build_pipeline(TINY, VOCABULARY, seed=0)
    prompts = ["a red ball bounces on grass", ""]
    expected, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=16)
    tokens = pipeline.tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt")
    torch.testing.assert_close(training.embed(pipeline.text_encoder, tokens.input_ids, tokens.attention_mask), expected)


# ---- the objective ------------------------------------------------------------------------------------------------


def test_the_flow_target_takes_the_samplers_steps_back_to_the_clip():
    """With the exact flow v = ε − x0 the checkpoint's own sampler must land on x0: sign, time scale and shift agree."""
    from cac_align.miniature.wan import build_scheduler

    clean, noise = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 16, 3, 4, 4)
    scheduler = build_scheduler(MiniWan())
    scheduler.set_timesteps(10)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(noise - clean, t, x, return_dict=False)[0]
    torch.testing.assert_close(x, clean, atol=1e-3, rtol=1e-3)


def test_noise_levels_follow_the_samplers_shift():
    recipe = WanRecipe()
    sigma = training.draw_sigmas(200_000, recipe, torch.Generator().manual_seed(0))
    assert 0 < sigma.min() and sigma.max() < 1
    median = sigma.median().item()  # the logit-normal's median is 1/2; the shift 3 takes it to 3/2 / 2
    assert abs(median - 0.75) < 0.005


def test_reconstruction_loss_is_worked_by_hand():
    target = torch.zeros(1, 3, 4, 4, 4)
    assert training.reconstruction_loss(target + 0.2, target, 4.0, 0.0).item() == pytest.approx(0.2)
    # One pixel of 256 leaves its median of 0 by 1 on one frame of four: weight 5 there and 1 elsewhere, mean weight 68/64.
    target[0, :, 2, 1, 1] = 1.0
    made = torch.zeros_like(target)
    assert training.reconstruction_loss(made, target, 4.0, 0.0).item() == pytest.approx(5 / 68)
    assert training.reconstruction_loss(target, target, 4.0, 0.5).item() == 0.0


def test_every_clip_is_seen_once_per_epoch_however_steps_are_cut():
    long = training.epoch_indices(7, 0, 21, seed=3).tolist()
    assert [sorted(long[n : n + 7]) for n in (0, 7, 14)] == [list(range(7))] * 3
    assert long[:7] != long[7:14]
    cut = [training.epoch_indices(7, start, 3, seed=3).tolist() for start in range(0, 21, 3)]
    assert sum(cut, []) == long
    assert training.epoch_indices(2, 0, 7, seed=0).shape == (7,)


def test_pieces_of_a_clip_hold_what_moves():
    clip = make_clip(3, replace(STUDIO, kinds=("ball",), motions=("left", "right")), anomalous=False).pixels
    moving = np.abs(clip.astype(int) - np.median(clip, 0)).max(-1) > 60
    for n in range(20):
        generator = training.step_generator(0, n)
        piece = training.cut(clip, 9, 24, generator)
        assert piece.shape == (9, 24, 24, 3)
    shares = [np.mean(training.cut(moving[..., None].repeat(3, -1).astype(np.uint8), 33, 24, training.step_generator(1, n))) for n in range(20)]
    assert np.mean(shares) > 1.3 * moving.mean()


def test_training_stays_inside_its_seeds():
    pixels, prompt = training.training_clip(5, 0.4)
    assert np.array_equal(pixels, make_clip(5, STUDIO).pixels) and prompt == make_clip(5, STUDIO).prompt
    with pytest.raises(ValueError, match="outside the training range"):
        training.training_clip(1_000_000, 0.4)
    shares = [make_clip(n, replace(STUDIO, anomaly_share=1.0)).status for n in range(4)]
    assert shares == ["abnormal"] * 4


def test_learning_rate_by_hand():
    factor = training.learning_rate_factor
    assert [factor(n, 100, 4) for n in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor(99, 100, 4) == pytest.approx(0.05)


# ---- interruption -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae_recipe(tmp_path_factory):
    return VaeRecipe(out=str(tmp_path_factory.mktemp("vae") / "whole"), frames=5, crop=24, long_every=3, measure=2, model=TINY, schedule=QUICK)


@pytest.fixture(scope="module")
def vae_folder(vae_recipe):
    return training.train_vae(vae_recipe)


def test_an_interrupted_vae_training_ends_with_the_same_weights(vae_recipe, vae_folder, tmp_path):
    cut = replace(vae_recipe, out=str(tmp_path / "cut"))
    assert training.train_vae(cut, stop_at=1) is None
    torch.manual_seed(99)  # a new process has another random state
    resumed = training.train_vae(cut)
    assert same_weights(vae_folder, resumed)
    assert json.loads((vae_folder / "config.json").read_text()) == json.loads((resumed / "config.json").read_text())


def test_the_latents_mean_and_spread_are_measured(vae_recipe, vae_folder):
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(vae_folder)
    first = vae_recipe.schedule.steps * vae_recipe.schedule.batch
    clips = torch.cat([training.to_signal(training.training_clip(first + n, 0.4)[0])[None] for n in range(2)])
    with torch.no_grad():
        latents = vae.encode(clips).latent_dist.mode().transpose(0, 1).flatten(1)
    np.testing.assert_allclose(vae.config.latents_mean, latents.mean(1), atol=1e-4)
    np.testing.assert_allclose(vae.config.latents_std, latents.std(1), rtol=1e-3)


def test_an_interrupted_wan_training_ends_with_the_same_pipeline(vae_folder, tmp_path):
    recipe = WanRecipe(
        out=str(tmp_path / "whole"), vae=str(vae_folder), clips=5, evaluate_every=0, evaluate_clips=0,
        num_inference_steps=2, model=TINY, schedule=QUICK,
    )  # fmt: skip
    whole = training.train_wan(recipe)
    cut = replace(recipe, out=str(tmp_path / "cut"))
    assert training.train_wan(cut, stop_at=2) is None
    torch.manual_seed(99)
    assert same_weights(whole, training.train_wan(cut))

    from cac_align.generation.wan import Wan

    wan = Wan.load(whole)
    assert (wan.setting.num_frames, wan.setting.height, wan.setting.num_inference_steps) == (33, 64, 2)
    assert len(wan("a red ball bounces on grass", 0)) == 33
    assert training.train_wan(recipe) == whole  # finished: nothing left to do


def test_a_folder_with_another_recipes_run_is_refused(vae_recipe, vae_folder):
    with pytest.raises(ValueError, match=r"another recipe \(kl, seed differ\)"):
        training.train_vae(replace(vae_recipe, seed=1, kl=0.5))


def test_wrong_requests_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="no trained VAE"):
        training.train_wan(WanRecipe(out=str(tmp_path), vae=str(tmp_path / "none")))
    recipe = ROOT / "recipes/miniature/vae.yaml"
    assert training.main([str(recipe), "schedule.stepz=3"]) == 2
    assert "stepz" in capsys.readouterr().err
    assert training.main([str(tmp_path / "none.yaml")]) == 2
    (tmp_path / "odd.yaml").write_text("job: audio\n")
    with pytest.raises(ValueError, match="job must be one of vae, wan; received 'audio'"):
        training.load_job(tmp_path / "odd.yaml")


@pytest.mark.parametrize("name", ["vae", "wan"])
def test_recipes_read(name):
    recipe = training.load_job(ROOT / f"recipes/miniature/{name}.yaml", ["out=/elsewhere"])
    assert recipe.job == name and recipe.out == "/elsewhere"


# ---- what ships ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (WEIGHTS / "model_index.json").is_file(), reason="the trained weights are not in the package yet")
class TestShipped:
    def test_they_load_with_diffusers_alone_and_generate(self):
        from diffusers import WanPipeline

        pipeline = WanPipeline.from_pretrained(WEIGHTS)
        names = [type(getattr(pipeline, name)).__name__ for name in ("text_encoder", "vae", "transformer", "scheduler")]
        assert names == ["UMT5EncoderModel", "AutoencoderKLWan", "WanTransformer3DModel", "UniPCMultistepScheduler"]
        assert (pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial) == (4, 8)

    def test_a_clip_is_33_frames_of_64_by_64_and_shows_what_was_asked_for(self):
        from cac_align.generation.wan import Wan
        from cac_align.miniature.oracle import judge

        wan = Wan.load(WEIGHTS)
        prompts = ["a red ball rolls to the right on grass", "a blue box falls in a room", "a yellow sign saying GO stands still at night"]
        videos = wan.batch(prompts, [1, 2, 3])
        assert {(len(video), video.height, video.width, video.fps) for video in videos} == {(33, 64, 64, 16.0)}
        verdicts = [judge(prompt, video) for prompt, video in zip(prompts, videos, strict=True)]
        assert all(verdict.follows["colour"] for verdict in verdicts)

    def test_they_are_small(self):
        assert sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file()) <= 9_000_000
