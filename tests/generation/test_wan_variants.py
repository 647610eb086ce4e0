"""VACE and image-to-video checkpoints: real diffusers classes with tiny random weights, for shapes and conditions."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from transformers import CLIPImageProcessor

from cac_align.core.video import Video
from cac_align.generation.latent_masks import pixel_mask
from cac_align.generation.repair.build import RepairRecipe, load_backend
from cac_align.generation.repair.resample import RepairRequest, tail_schedule
from cac_align.generation.repair.vace import VaceRepair
from cac_align.generation.stepwise.continuation import ClampedContinuation, ImageContinuation
from cac_align.generation.wan import Wan
from cac_align.generation.wan_variants import load_variant
from tests.generation.test_wan import DEFAULTS, TINY, built
from tests.support.tiny_flow import every

PROMPT = "a red ball"
SHAPE = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": TINY.heads,
    "attention_head_dim": TINY.dim // TINY.heads,
    "out_channels": TINY.latent_channels,
    "text_dim": TINY.text_dim,
    "freq_dim": TINY.freq_dim,
    "ffn_dim": TINY.ffn_dim,
    "num_layers": 2,
}


def save(pipeline, folder):
    pipeline.save_pretrained(folder)
    (folder / "cac_align.json").write_text(json.dumps(DEFAULTS))
    return folder


def parts():
    plain = built()
    return {name: plain.components[name] for name in ("tokenizer", "text_encoder", "vae", "scheduler")}


@pytest.fixture(scope="module")
def vace(tmp_path_factory):
    torch.manual_seed(0)
    # As in Wan2.1: three halvings in space, the last two in time. diffusers' VACE takes the strides from their number.
    vae = AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, attn_scales=[], temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    channels = TINY.latent_channels  # inactive and reactive latents, and the mask's 8 × 8 pixels per cell
    transformer = WanVACETransformer3DModel(
        **SHAPE, in_channels=channels, vace_layers=[0], vace_in_channels=2 * channels + 64
    )
    return save(WanVACEPipeline(**{**parts(), "vae": vae}, transformer=transformer), tmp_path_factory.mktemp("vace"))


@pytest.fixture(scope="module")
def clip():
    return Video.open(np.random.default_rng(0).integers(0, 255, (9, 32, 48, 3), np.uint8), fps=16)


def test_vace_fills_the_mask_and_leaves_the_original_elsewhere(vace, clip):
    backend = load_backend(RepairRecipe("vace", generator=_generator(vace)))
    assert isinstance(backend, VaceRepair) and backend.provenance["pipeline"] == "WanVACEPipeline"
    grid = backend.grid(clip)
    weights = np.zeros(grid.shape, np.float32)
    weights[1, 1:3, 2:4] = 1
    one, two, other = (backend(RepairRequest(PROMPT, clip, weights, 0.9, seed)) for seed in (1, 1, 2))
    inside = pixel_mask(weights, grid)
    assert inside.sum() == 4 * 16 * 16  # frames 1 to 4, two cells of 8 px a side
    assert np.array_equal(every(one.video)[~inside], every(clip)[~inside])
    assert (every(one.video)[inside] != every(clip)[inside]).any()
    assert np.array_equal(every(one.video), every(two.video))
    assert not np.array_equal(every(one.video), every(other.video))
    assert one.latents is None and one.steps == backend.steps(0.5) == DEFAULTS["num_inference_steps"]


def test_vace_is_told_the_mask(vace, clip):
    """What it sees as to be made anew is what the weights say: the mask's channels of its conditioning."""
    backend, seen = VaceRepair(load_variant(vace, "WanVACEPipeline")), []
    backend.vace.pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["control_hidden_states"].clone()), with_kwargs=True
    )
    weights = np.zeros(backend.grid(clip).shape, np.float32)
    weights[2, 0, 5] = 1
    backend(RepairRequest(PROMPT, clip, weights, 0.9, 1))
    mask = seen[0][0, 2 * TINY.latent_channels :].amax(0)  # (t, h, w)
    assert mask[2, 0, 5] == 1 and mask.sum() == 1


@pytest.mark.parametrize(("frames", "height"), [(8, 32), (9, 40)])
def test_vace_refuses_a_form_that_it_cannot_make(vace, frames, height):
    with pytest.raises(ValueError, match="nearest"):
        VaceRepair(load_variant(vace, "WanVACEPipeline")).grid(
            Video.open(np.zeros((frames, height, 48, 3), np.uint8), fps=8)
        )


def test_a_checkpoint_of_another_kind_is_refused(vace, tmp_path):
    with pytest.raises(ValueError, match=r"expected a Wan text-to-video checkpoint .* received WanVACEPipeline"):
        Wan.load(vace)
    with pytest.raises(ValueError, match=r"expected a Wan checkpoint \(WanImageToVideoPipeline\)"):
        load_variant(vace, "WanImageToVideoPipeline")
    with pytest.raises(ValueError, match="backend must be resample or vace"):
        load_backend(RepairRecipe("paint", generator=_generator(vace)))
    with pytest.raises(ValueError, match="num_frames=33 would not be read"):
        load_backend(RepairRecipe("vace", generator=_generator(vace, num_frames=33)))


def _generator(folder, **more):
    from cac_align.generation.build import GeneratorRecipe

    return GeneratorRecipe(model=str(folder), device="cpu", **more)


@pytest.mark.parametrize("small", [True, False], ids=["TI2V", "I2V"])
def test_image_to_video_goes_on_from_the_frame(small, tmp_path):
    """TI2V-5B clamps the first latent frame (expand_timesteps); I2V has 4 mask channels and the encoded image beside the noise."""
    torch.manual_seed(0)
    channels = TINY.latent_channels
    transformer = WanTransformer3DModel(**SHAPE, in_channels=channels if small else 2 * channels + 4)
    made = WanImageToVideoPipeline(
        **parts(),
        image_processor=CLIPImageProcessor(),
        image_encoder=None,
        transformer=transformer,
        expand_timesteps=small,
    )
    model = ImageContinuation(load_variant(save(made, tmp_path / "i2v"), "WanImageToVideoPipeline"))
    frame = np.random.default_rng(1).integers(0, 255, (32, 48, 3), np.uint8)
    video = model(PROMPT, frame, 5, 3)
    assert every(video).shape == (5, 32, 48, 3) and np.array_equal(every(video)[0], frame)
    assert model.temporal == 4 and not np.array_equal(every(video), every(model(PROMPT, frame, 5, 4)))
    assert not np.array_equal(every(video)[1:], every(model(PROMPT, 255 - frame, 5, 3))[1:])
    with pytest.raises(ValueError, match="first_frame"):
        model(PROMPT, None, 5, 3)


def test_a_plain_checkpoint_is_clamped_to_the_frame(tmp_path):
    save(built(), tmp_path / "wan")
    wan = Wan.load(tmp_path / "wan")
    seen = []
    wan.pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["hidden_states"][0, :, 0].clone()), with_kwargs=True
    )
    clamped = ClampedContinuation(wan)
    frame = np.random.default_rng(1).integers(0, 255, (32, 48, 3), np.uint8)
    video = clamped(PROMPT, frame, 9, 3)
    assert every(video).shape == (9, 32, 48, 3) and np.array_equal(every(video)[0], frame)
    first = len(seen)
    other = clamped(PROMPT, frame, 9, 4)
    assert not np.array_equal(every(video)[1:], every(other)[1:])
    # At the last step the first latent frame is the image's at that noise level, whatever the other frames are.
    sigma = float(tail_schedule(wan, 1.0).sigmas[-2])
    assert first == len(seen) // 2 and sigma < 1
    noise = [
        torch.randn((TINY.latent_channels, 3, 4, 6), generator=torch.Generator().manual_seed(seed))[:, 0]
        for seed in (3, 4)
    ]
    latent = [(seen[first - 1] - sigma * noise[0]) / (1 - sigma), (seen[-1] - sigma * noise[1]) / (1 - sigma)]
    torch.testing.assert_close(latent[0], latent[1], atol=1e-4, rtol=1e-3)
    assert np.array_equal(every(clamped(PROMPT, None, 9, 3)), every(wan(PROMPT, 3)))
    with pytest.raises(ValueError, match="expected a frame of 32 × 48"):
        clamped(PROMPT, frame[:16], 9, 3)
