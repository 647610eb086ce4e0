"""Masked resampling on a real, tiny, untrained Wan: what is outside stays, to the last bit."""

import shutil

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from cac_align.core.video import Video
from cac_align.core.weights import shipped
from cac_align.generation.latent_masks import latent_grid, pixel_mask
from cac_align.generation.repair.latent_video import decode_frames, encode_latents
from cac_align.generation.repair.resample import MaskedResampling, RepairRequest, resample, tail_schedule
from cac_align.generation.wan import Wan
from tests.support.tiny_flow import every, write_wan

PROMPT = "a red ball"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_wan(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def wan(folder):
    return Wan.load(folder)


@pytest.fixture(scope="module")
def video(wan):
    return wan(PROMPT, 1)


def one_corner(wan, border=0.5):
    """Weight 1 on the upper left cells of the latent frames from the second on, and a border of half weight beside them."""
    weights = np.zeros(latent_grid(wan).shape, np.float32)
    weights[1:, :2, :2] = 1
    weights[1:, :2, 2] = border
    return weights


def test_outside_the_mask_everything_is_the_vae_round_trip_to_the_last_bit(wan, video):
    weights = one_corner(wan)
    latents = encode_latents(wan, video)
    repaired = MaskedResampling(wan)(RepairRequest(PROMPT, video, weights, 0.9, seed=5))
    held = torch.from_numpy(weights == 0)
    assert torch.equal(repaired.latents[:, held], latents[:, held])
    assert (repaired.latents[:, ~held] - latents[:, ~held]).abs().min() > 0
    round_trip = decode_frames(wan, latents)
    inside = pixel_mask(weights, latent_grid(wan))
    assert np.array_equal(every(repaired.video)[~inside], round_trip[~inside])
    assert not np.array_equal(every(repaired.video)[inside], round_trip[inside])
    assert np.array_equal(every(repaired.original), round_trip)


def test_the_decoder_alone_would_have_changed_pixels_outside(wan, video):
    """Why pixels are taken from the round trip as well: the decoder mixes neighbouring cells."""
    weights = one_corner(wan)
    repaired = MaskedResampling(wan)(RepairRequest(PROMPT, video, weights, 0.9, seed=5))
    outside = ~pixel_mask(weights, latent_grid(wan))
    assert not np.array_equal(decode_frames(wan, repaired.latents)[outside], every(repaired.original)[outside])


@pytest.mark.parametrize("euler", [False, True])
def test_the_model_sees_the_original_at_each_steps_noise_level(wan, folder, video, euler):
    """Recomputed from its definition: cells of weight 0 hold (1 − σ)·original + σ·noise before every step; those of weight ½
    until half of the steps are taken and stepped from there; those of weight 1 at the first step alone."""
    wan = Wan.load(folder)
    if euler:
        wan.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    seen = []
    wan.pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"][0].clone()), with_kwargs=True
    )
    latents, weights = encode_latents(wan, video), torch.from_numpy(one_corner(wan))
    result = resample(wan, [PROMPT], latents[None], weights[None], 1.0, [9])[0]
    sigmas = [float(sigma) for sigma in tail_schedule(wan, 1.0).sigmas]
    noise = torch.randn(latents.shape, generator=torch.Generator("cpu").manual_seed(9))
    assert len(seen) == 2 * 4  # four steps, with and without the prompt: what plain sampling takes
    for step in range(4):
        expected = (1 - sigmas[step]) * latents + sigmas[step] * noise
        held = (seen[2 * step] - expected).abs().amax(0) < 1e-5
        assert held[weights == 0].all()
        assert bool(held[weights == 0.5].all()) == (step <= 2)  # two of four steps are its own
        assert bool(held[weights == 1].any()) == (step == 0)
    assert torch.equal(result[:, weights == 0], latents[:, weights == 0])


def test_weights_of_one_and_full_strength_are_plain_sampling(wan):
    """Against WanPipeline itself, from the same noise."""
    shape = (4, *latent_grid(wan).shape)
    noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(2))
    plain = wan.pipeline(
        prompt=[PROMPT], negative_prompt=[""], height=16, width=16, num_frames=5, num_inference_steps=4, guidance_scale=2.0,
        latents=noise[None], output_type="latent", max_sequence_length=6,
    ).frames[0]  # fmt: skip
    ours = resample(wan, [PROMPT], torch.zeros(1, *shape), torch.ones(1, *shape[1:]), 1.0, [2])[0]
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


def test_weights_of_zero_give_the_round_trip_back(wan, video):
    repaired = MaskedResampling(wan)(RepairRequest(PROMPT, video, 0 * one_corner(wan), 0.9, seed=5))
    assert np.array_equal(every(repaired.video), decode_frames(wan, encode_latents(wan, video)))


def test_known_latents_are_not_encoded_again(wan, video):
    latents = torch.zeros_like(encode_latents(wan, video))
    repaired = MaskedResampling(wan)(RepairRequest(PROMPT, video, one_corner(wan), 0.9, 5, latents))
    assert np.array_equal(every(repaired.original), decode_frames(wan, latents))


def test_a_checkpoint_without_vae_encoder_weights_is_refused_by_name(folder, tmp_path):
    broken = tmp_path / "half"
    shutil.copytree(folder, broken)
    file = next((broken / "vae").glob("*.safetensors"))
    save_file({name: value for name, value in load_file(file).items() if not name.startswith("encoder.")}, file)
    with pytest.raises(ValueError, match=r"half: weights are missing.*vae\.encoder\."):
        Wan.load(broken)


def test_strength_is_the_nearest_noise_level_of_the_checkpoint(wan):
    whole = [float(sigma) for sigma in tail_schedule(wan, 1.0).sigmas]
    assert len(whole) == 5 and whole[-1] == 0
    for start in range(4):
        part = tail_schedule(wan, whole[start])
        assert [float(sigma) for sigma in part.sigmas] == whole[start:] and len(part.timesteps) == 4 - start
    assert MaskedResampling(wan).steps(whole[1] * 0.9 + whole[2] * 0.1) == 3
    assert [float(sigma) for sigma in wan.pipeline.scheduler.sigmas] != whole[1:]  # the checkpoint's own is left alone
    for wrong in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            tail_schedule(wan, wrong)


def test_a_batch_is_the_same_as_one_by_one(wan, video):
    latents, weights = encode_latents(wan, video), torch.from_numpy(one_corner(wan))
    pair = resample(wan, [PROMPT, "a blue box"], torch.stack([latents] * 2), torch.stack([weights] * 2), 0.9, [1, 2])
    for number, prompt in enumerate((PROMPT, "a blue box")):
        alone = resample(wan, [prompt], latents[None], weights[None], 0.9, [number + 1])[0]
        torch.testing.assert_close(pair[number], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((6, 16, 16), "num_frames"), ((5, 24, 16), "height"), ((5, 16, 20), "width")],
)
def test_a_video_that_this_checkpoint_cannot_make_is_refused_with_the_nearest_that_it_can(wan, shape, message):
    other = Video.open(np.zeros((*shape, 3), np.uint8), fps=16)
    with pytest.raises(ValueError, match=rf"{message} must be.*nearest"):
        MaskedResampling(wan).grid(other)


def test_another_size_that_fits_the_patch_is_repaired(wan):
    wide = Video.open(np.random.default_rng(0).integers(0, 255, (9, 16, 32, 3), np.uint8), fps=8)
    backend = MaskedResampling(wan)
    weights = np.zeros(backend.grid(wide).shape, np.float32)
    weights[2] = 1
    repaired = backend(RepairRequest(PROMPT, wide, weights, 0.9, 1)).video
    assert every(repaired).shape == (9, 16, 32, 3) and repaired.fps == 8
    with pytest.raises(ValueError, match="expected weights of shape"):
        backend(RepairRequest(PROMPT, wide, one_corner(wan), 0.9, 1))
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        backend(RepairRequest(PROMPT, wide, 2 * weights, 0.9, 1))


def test_the_shipped_wan_draws_the_marked_part_anew():
    """With trained weights: the frames before the mask stay, those inside differ, and the seed decides how."""
    wan = Wan.load(shipped("wan"))
    prompt = "a red ball rolls to the right on grass"
    video = wan(prompt, 3)
    weights = np.zeros(latent_grid(wan).shape, np.float32)
    weights[4:7, 4:14, 2:14] = 1
    backend = MaskedResampling(wan)
    first, again, other = (backend(RepairRequest(prompt, video, weights, 0.92, seed)) for seed in (1, 1, 2))
    assert np.array_equal(every(first.video), every(again.video))
    inside = pixel_mask(weights, latent_grid(wan))
    assert np.array_equal(every(first.video)[~inside], every(first.original)[~inside])
    assert not np.array_equal(every(first.video)[inside], every(other.video)[inside])
    assert first.steps == 7
