"""The small Wan: its parts, its training, and the weights that ship."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cac_align.core.weights import shipped
from cac_align.miniature.models.wan import MiniWan, build_pipeline, build_prompt_tokenizer, build_vae
from cac_align.miniature.world.grammar import VOCABULARY, parse_prompt
from cac_align.miniature.world.settings import PROMPT_SEEDS, STUDIO
from cac_align.miniature.world.world import make_clip, make_prompts
from research.training import optimise, train_vae, train_wan
from research.training.optimise import Schedule
from research.training.train_vae import VaeRecipe
from research.training.train_wan import WanRecipe

TINY = MiniWan(
    vae_dim=8,
    vae_mult=(1, 1),
    latent_channels=4,
    text_dim=16,
    text_heads=2,
    dim=24,
    heads=2,
    layers=1,
    ffn_dim=32,
    freq_dim=16,
)
QUICK = Schedule(steps=3, batch=2, matrix_lr=0.01, warmup=1, save_every=1, log_every=1)
ROOT = Path(__file__).parents[2]


def same_weights(one: Path, two: Path) -> bool:
    from safetensors.torch import load_file

    files = sorted(file.relative_to(one) for file in one.rglob("*.safetensors"))
    assert files, "nothing to compare"
    tensors = [(load_file(one / file), load_file(two / file)) for file in files]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in tensors)


# ---- the parts ----------------------------------------------------------------------------------------------------


def test_every_studio_prompt_is_whole_words_and_fits():
    tokenizer = build_prompt_tokenizer(VOCABULARY, MiniWan().prompt_tokens)
    for prompt in make_prompts(PROMPT_SEEDS[:300], STUDIO):
        ids = tokenizer(prompt).input_ids
        assert len(ids) == len(prompt.split()) + 1 <= MiniWan().prompt_tokens
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == prompt


def test_words_outside_the_vocabulary_are_unknown_and_the_world_names_them():
    tokenizer = build_prompt_tokenizer(["a", "red", "ball"], 8)
    assert tokenizer("a red zebra").input_ids == [3, 4, tokenizer.unk_token_id, 1]
    assert tokenizer("").input_ids == [1]
    with pytest.raises(ValueError, match="zebra"):
        parse_prompt("a red zebra rolls to the right on grass")
    with pytest.raises(ValueError, match="distinct words"):
        build_prompt_tokenizer(["a", "red ball"], 8)


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


@pytest.mark.parametrize(("mult", "latents"), [((1, 1), (1, 4, 5, 8, 8)), ((1, 1, 1), (1, 4, 3, 4, 4))])
@torch.no_grad()
def test_each_level_of_the_vae_halves_space_and_time(mult, latents):
    vae = build_vae(replace(TINY, vae_mult=mult))
    encoded = vae.encode(torch.zeros(1, 3, 9, 32, 32)).latent_dist.mode()
    assert encoded.shape == latents
    assert vae.decode(encoded).sample.shape == (1, 3, 9, 32, 32)
    assert (vae.config.scale_factor_temporal, vae.config.scale_factor_spatial) == (
        8 // (latents[2] - 1),
        32 // latents[3],
    )


def test_a_token_holds_fewer_numbers_than_the_dit_is_wide():
    shape = MiniWan()
    assert shape.latent_channels * int(np.prod(shape.patch)) < shape.dim


def test_the_unclamped_decoder_is_the_decoder_without_its_clamp():
    torch.manual_seed(0)
    vae = build_vae(TINY)
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 10
        latents = torch.randn(1, 4, 3, 4, 4)
        free = train_vae.decode_unclamped(vae, latents)
        assert free.abs().max() > 1
        assert torch.equal(free.clamp(-1, 1), vae.decode(latents).sample)


def test_embeddings_are_those_of_the_pipeline():
    pipeline = build_pipeline(TINY, VOCABULARY, seed=0)
    prompts = ["a red ball bounces on grass", ""]
    expected, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=16)
    tokens = pipeline.tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt")
    torch.testing.assert_close(
        train_wan.embed(pipeline.text_encoder, tokens.input_ids, tokens.attention_mask), expected
    )


# ---- the objective ------------------------------------------------------------------------------------------------


def test_the_flow_target_takes_the_samplers_steps_back_to_the_clip():
    """With the exact flow v = ε − x0 the checkpoint's own sampler must land on x0: sign, time scale and shift agree."""
    from cac_align.miniature.models.wan import build_scheduler

    clean, noise = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 16, 3, 4, 4)
    scheduler = build_scheduler(MiniWan())
    scheduler.set_timesteps(10)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(noise - clean, t, x, return_dict=False)[0]
    torch.testing.assert_close(x, clean, atol=1e-3, rtol=1e-3)


def test_noise_levels_follow_the_samplers_shift():
    recipe = WanRecipe()
    sigma = train_wan.draw_sigmas(200_000, recipe, torch.Generator().manual_seed(0))
    assert sigma.min() > 0 and sigma.max() < 1
    shift = recipe.model.flow_shift  # the logit-normal's median is 1/2; the shift s takes it to (s/2) / (1 + (s − 1)/2)
    assert abs(sigma.median().item() - shift / (shift + 1)) < 0.005


def test_reconstruction_loss_is_worked_by_hand():
    target, even = torch.zeros(1, 3, 4, 4, 4), torch.ones(1, 1, 4, 4, 4)
    grey = train_vae.reconstruction_loss(target + 0.2, target, even, 0.0).item()
    assert grey == pytest.approx((0.2 + 2 * 0.04) / 3, rel=1e-4)  # grey errs in brightness alone, one axis of three
    red = target.clone()
    red[:, 0] = 0.2  # brightness .2 / 3, red − green .2, yellow − blue .1
    expected = sum(e + 2 * e**2 for e in (0.2 / 3, 0.2, 0.1)) / 3
    assert train_vae.reconstruction_loss(red, target, even, 0.0).item() == pytest.approx(expected, rel=1e-4)
    weight = even.clone()
    weight[0, 0, 0, 0, 0] = 5.0
    spot = target.clone()
    spot[:, :, 0, 0, 0] = 0.2  # one pixel of 64, five times the weight of another: 5/68 of the grey loss
    assert train_vae.reconstruction_loss(spot, target, weight, 0.0).item() == pytest.approx(grey * 5 / 68, rel=1e-4)
    assert train_vae.reconstruction_loss(spot, target, weight, 0.5).item() > grey * 5 / 68
    assert train_vae.reconstruction_loss(target, target, weight, 0.5).item() == 0.0


def test_every_clip_is_seen_once_per_epoch_however_steps_are_cut():
    long = train_wan.epoch_indices(7, 0, 21, seed=3).tolist()
    assert [sorted(long[n : n + 7]) for n in (0, 7, 14)] == [list(range(7))] * 3
    assert long[:7] != long[7:14]
    pieces = [train_wan.epoch_indices(7, start, 3, seed=3).tolist() for start in range(0, 21, 3)]
    assert [n for piece in pieces for n in piece] == long
    assert train_wan.epoch_indices(2, 0, 7, seed=0).shape == (7,)


def test_salience_marks_the_entity_and_pieces_hold_it():
    clip = make_clip(4, replace(STUDIO, kinds=("ball",), motions=("left", "right")), anomalous=False)
    weight = train_vae.salience(clip.pixels)
    assert weight.shape == (33, 64, 64) and weight.min() >= 0 and weight.max() == 1
    ball = weight > 0.5
    ys, xs = np.nonzero(ball[10])
    track = clip.scene.entities[0].track
    assert abs(xs.mean() - track["x"][10]) < 1.5 and abs(ys.mean() - track["y"][10]) < 1.5
    inside = []
    for n in range(20):
        piece = train_vae.cut(weight, 9, 24, optimise.step_generator(0, n))
        assert weight[piece].shape == (9, 24, 24)
        inside.append(ball[piece].mean())
    assert np.mean(inside) > 2 * ball.mean()


def test_muon_steps_are_orthogonal():
    matrix = torch.randn(6, 15, generator=torch.Generator().manual_seed(0))
    for one in (matrix, matrix.T):
        values = torch.linalg.svdvals(optimise.orthogonalise(one))
        assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.cosine_similarity(optimise.orthogonalise(matrix).flatten(), (left @ right).flatten(), 0) > 0.97


def test_training_stays_inside_its_seeds():
    pixels, prompt = train_vae.training_clip(5, 0.4)
    assert np.array_equal(pixels, make_clip(5, STUDIO).pixels) and prompt == make_clip(5, STUDIO).prompt
    with pytest.raises(ValueError, match="outside the training range"):
        train_vae.training_clip(1_000_000, 0.4)
    shares = [make_clip(n, replace(STUDIO, anomaly_share=1.0)).status for n in range(4)]
    assert shares == ["abnormal"] * 4


# ---- interruption -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae_recipe(tmp_path_factory):
    return VaeRecipe(
        out=str(tmp_path_factory.mktemp("vae") / "whole"),
        frames=5,
        crop=24,
        long_every=0,
        measure=1,
        model=TINY,
        schedule=QUICK,
    )


@pytest.fixture(scope="module")
def vae_folder(vae_recipe):
    return train_vae.train_vae(vae_recipe)


def test_an_interrupted_vae_training_ends_with_the_same_weights(vae_recipe, vae_folder, tmp_path):
    cut = replace(vae_recipe, out=str(tmp_path / "cut"))
    assert train_vae.train_vae(cut, stop_at=1) is None
    torch.manual_seed(99)  # a new process has another random state
    resumed = train_vae.train_vae(cut)
    assert same_weights(vae_folder, resumed)
    assert json.loads((vae_folder / "config.json").read_text()) == json.loads((resumed / "config.json").read_text())


def test_the_latents_mean_and_spread_are_measured(vae_recipe, vae_folder):
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(vae_folder)
    first = vae_recipe.schedule.steps * vae_recipe.schedule.batch
    clips = torch.cat(
        [train_vae.to_signal(train_vae.training_clip(first + n, 0.4)[0])[None] for n in range(vae_recipe.measure)]
    )
    with torch.no_grad():
        latents = vae.encode(clips).latent_dist.mode().transpose(0, 1).flatten(1)
    np.testing.assert_allclose(vae.config.latents_mean, latents.mean(1), atol=1e-4)
    np.testing.assert_allclose(vae.config.latents_std, latents.std(1), rtol=1e-3)


def test_an_interrupted_wan_training_ends_with_the_same_pipeline(vae_folder, tmp_path):
    recipe = WanRecipe(
        out=str(tmp_path / "whole"), vae=str(vae_folder), clips=3, latents=str(tmp_path / "latents"), evaluate_every=0, evaluate_clips=0,
        num_inference_steps=2, model=TINY, schedule=QUICK,
    )  # fmt: skip
    whole = train_wan.train_wan(recipe)
    cut = replace(recipe, out=str(tmp_path / "cut"))
    assert train_wan.train_wan(cut, stop_at=2) is None
    torch.manual_seed(99)
    assert same_weights(whole, train_wan.train_wan(cut))

    from cac_align.generation.wan import Wan

    wan = Wan.load(whole)
    assert (wan.setting.num_frames, wan.setting.height, wan.setting.num_inference_steps) == (17, 64, 2)
    assert len(wan("a red ball bounces on grass", 0)) == 17
    assert train_wan.train_wan(recipe) == whole  # finished: nothing left to do


def test_a_folder_with_another_recipes_run_is_refused(vae_recipe, vae_folder):
    with pytest.raises(ValueError, match=r"another recipe \(kl, seed differ"):
        train_vae.train_vae(replace(vae_recipe, seed=1, kl=0.5))


def test_a_wan_without_a_vae_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no trained VAE"):
        train_wan.train_wan(WanRecipe(out=str(tmp_path), vae=str(tmp_path / "none")))


# ---- what ships ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not (shipped("wan") / "model_index.json").is_file(), reason="the trained weights are not in the package yet"
)
class TestShipped:
    def test_they_load_with_diffusers_alone_and_generate(self):
        from diffusers import WanPipeline

        pipeline = WanPipeline.from_pretrained(shipped("wan"))
        names = [type(getattr(pipeline, name)).__name__ for name in ("text_encoder", "vae", "transformer", "scheduler")]
        assert names == ["UMT5EncoderModel", "AutoencoderKLWan", "WanTransformer3DModel", "UniPCMultistepScheduler"]
        assert (pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial) == (2, 4)

    def test_a_clip_is_17_frames_of_64_by_64_and_shows_what_was_asked_for(self):
        from cac_align.generation.wan import Wan
        from cac_align.miniature.oracle.oracle import judge_clip

        wan = Wan.load(shipped("wan"))
        prompts = [
            "a red ball rolls to the right on grass",
            "a blue box falls on sand",
            "a yellow ball bounces at night",
        ]
        videos = wan.batch(prompts, [1, 2, 3])
        assert {(len(video), video.height, video.width, video.fps) for video in videos} == {(17, 64, 64, 16.0)}
        verdicts = [judge_clip(prompt, video) for prompt, video in zip(prompts, videos, strict=True)]
        assert all(verdict.follows["colour"] for verdict in verdicts)

    def test_they_are_small(self):
        assert sum(file.stat().st_size for file in shipped("wan").rglob("*") if file.is_file()) <= 9_000_000
