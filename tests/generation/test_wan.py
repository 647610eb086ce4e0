"""The generation layer: any diffusers Wan folder behind one callable. The pipelines here are real, tiny and untrained."""

import json
import shutil

import numpy as np
import pytest
import torch

from cac_align.core.weights import weights_folder
from cac_align.generation.wan import Setting, Wan, hash_checkpoint
from cac_align.miniature.models.wan import MiniWan, build_pipeline, save_pipeline

TINY = MiniWan(
    vae_dim=8,
    vae_mult=(1, 1, 1),
    patch=(1, 2, 2),
    latent_channels=4,
    text_dim=16,
    text_heads=2,
    prompt_tokens=6,
    dim=24,
    heads=2,
    layers=1,
    ffn_dim=32,
    freq_dim=16,
)
WORDS = ["a", "ball", "red", "rolls"]
DEFAULTS = {
    "height": 32,
    "width": 48,
    "num_frames": 9,
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
    "fps": 16.0,
    "max_sequence_length": 6,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("wan")
    save_pipeline(built(), path, DEFAULTS)
    return path


def built():
    """Untrained weights; the last layer of the DiT, which starts at zero, is made random so that prompt and guidance matter."""
    pipeline = build_pipeline(TINY, WORDS, seed=3)
    weight = pipeline.transformer.proj_out.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return pipeline


@pytest.fixture(scope="module")
def wan(folder):
    return Wan.load(folder)


def pixels(video):
    return video.frames(range(len(video))).pixels


def test_defaults_come_from_the_checkpoint_and_arguments_override_them(folder, wan):
    assert wan.setting == Setting(**DEFAULTS)
    other = Wan.load(str(folder), height=64, num_frames=5, guidance_scale=1.0, fps=8, dtype="float32").setting
    assert (other.height, other.width, other.num_frames, other.guidance_scale, other.fps) == (64, 48, 5, 1.0, 8)


def test_without_its_own_defaults_a_checkpoint_is_sampled_like_wan_1_3b(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "plain")
    (tmp_path / "plain" / "cac_align.json").unlink()
    setting = Wan.load(tmp_path / "plain").setting
    assert (setting.height, setting.width, setting.num_frames, setting.num_inference_steps) == (480, 832, 81, 50)
    assert (setting.guidance_scale, setting.fps, setting.max_sequence_length) == (5.0, 16.0, 512)


def test_a_video_has_the_size_length_and_clock_of_the_setting(wan):
    video = wan("a red ball", 1)
    assert (len(video), video.height, video.width, video.fps) == (9, 32, 48, 16.0)
    assert video.times_s[-1] == 8 / 16


def test_the_same_prompt_and_seed_give_the_same_pixels_and_another_seed_others(wan):
    torch.manual_seed(1)
    first = pixels(wan("a red ball", 5))
    torch.manual_seed(2)  # the global state must not matter
    torch.rand(7)
    assert np.array_equal(first, pixels(wan("a red ball", 5)))
    assert not np.array_equal(first, pixels(wan("a red ball", 6)))


def test_a_batch_gives_what_single_calls_give(wan):
    prompts, seeds = ["a red ball", "ball rolls", "a ball"], [5, 6, 7]
    for video, prompt, seed in zip(wan.batch(prompts, seeds), prompts, seeds, strict=True):
        difference = np.abs(pixels(video).astype(int) - pixels(wan(prompt, seed)).astype(int))
        assert difference.max() <= 1  # rounding of another batch size


def test_the_vae_decodes_one_video_at_a_time_to_the_same_numbers(folder):
    wan = Wan.load(folder)
    vae, sizes, given = wan.pipeline.vae, [], []
    handles = [
        vae.post_quant_conv.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0]))),
        vae.decoder.register_forward_hook(lambda module, inputs, output: given.append(len(inputs[0]))),
    ]
    made = wan.batch(["a red ball", "ball rolls", "a ball"], [5, 6, 7])
    assert sizes == [1, 1, 1] and set(given) == {1}
    vae.use_slicing = False  # all at once, as it would be
    sizes.clear()
    for one, other in zip(made, wan.batch(["a red ball", "ball rolls", "a ball"], [5, 6, 7]), strict=True):
        assert np.abs(pixels(one).astype(int) - pixels(other).astype(int)).max() <= 1
    assert sizes == [3]
    for handle in handles:
        handle.remove()
    latents = torch.randn(3, 4, 3, 8, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = vae.decode(latents).sample
        vae.enable_slicing()
        torch.testing.assert_close(vae.decode(latents).sample, together, atol=1e-5, rtol=1e-5)


def test_guidance_and_negative_prompt_matter(wan):
    plain = pixels(wan.with_setting(guidance_scale=1.0)("a red ball", 5)).astype(int)
    guided = pixels(wan.with_setting(guidance_scale=40.0)("a red ball", 5)).astype(int)
    away = pixels(wan.with_setting(guidance_scale=40.0, negative_prompt="rolls")("a red ball", 5)).astype(int)
    assert np.abs(plain - guided).max() > 0
    assert np.abs(guided - away).max() > 0


def test_wan_agrees_with_diffusers_own_call(wan, folder):
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt="a red ball", height=32, width=48, num_frames=9, num_inference_steps=2, guidance_scale=2.0, max_sequence_length=6,
        generator=torch.Generator().manual_seed(5), output_type="np",
    ).frames[0]  # fmt: skip
    assert np.array_equal(np.rint(made * 255).astype(np.uint8), pixels(wan("a red ball", 5)))


def test_every_component_survives_saving_and_loading(folder, wan):
    made = built()
    for name in ("transformer", "text_encoder", "vae"):
        expected, loaded = getattr(made, name).state_dict(), getattr(wan.pipeline, name).state_dict()
        assert expected.keys() == loaded.keys()
        assert all(torch.equal(expected[key], loaded[key]) for key in expected), name
    assert wan.pipeline.tokenizer("a red ball").input_ids == made.tokenizer("a red ball").input_ids
    assert wan.pipeline.scheduler.config.flow_shift == TINY.flow_shift


@pytest.mark.parametrize(("frames", "nearest"), [(10, "9 and 13"), (8, "5 and 9"), (0, "1 and 5"), (-4, "1 and 5")])
def test_a_frame_count_that_wan_cannot_do_names_the_nearest(wan, frames, nearest):
    with pytest.raises(ValueError, match=rf"4k \+ 1.*received {frames}; the nearest are {nearest}"):
        wan.with_setting(num_frames=frames)


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [("height", 40, "32 and 48"), ("width", 100, "96 and 112"), ("height", 0, "16 and 32")],
)
def test_a_size_that_wan_cannot_do_names_the_nearest(wan, name, value, nearest):
    with pytest.raises(
        ValueError,
        match=f"{name} must be a positive multiple of 16 pixels, received {value}; the nearest are {nearest}",
    ):
        wan.with_setting(**{name: value})


def test_what_is_allowed_really_runs(wan):
    video = wan.with_setting(height=16, width=32, num_frames=1, num_inference_steps=1)("a ball", 0)
    assert (len(video), video.height, video.width) == (1, 16, 32)


def test_what_is_not_a_wan_checkpoint_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no such folder"):
        Wan.load(tmp_path / "nothing" / "here")
    with pytest.raises(ValueError, match=r"no model_index.json"):
        Wan.load(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match=r"expected a Wan text-to-video checkpoint.*received FluxPipeline"):
        Wan.load(tmp_path)
    shutil.copytree(folder, tmp_path / "torn")
    (tmp_path / "torn" / "transformer" / "config.json").unlink()
    with pytest.raises(ValueError, match="incomplete or unreadable"):
        Wan.load(tmp_path / "torn")


def test_unknown_defaults_and_types_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "odd")
    (tmp_path / "odd" / "cac_align.json").write_text(json.dumps({"hight": 32}))
    with pytest.raises(ValueError, match="unknown hight; expected some of height"):
        Wan.load(tmp_path / "odd")
    with pytest.raises(ValueError, match="dtype must be float32, bfloat16 or float16; received 'half-ish'"):
        Wan.load(folder, dtype="half-ish")


def test_wrong_requests_are_refused(wan):
    with pytest.raises(ValueError, match="one seed per prompt, received 2 prompts and 1 seeds"):
        wan.batch(["a ball", "a ball"], [1])
    with pytest.raises(ValueError, match="prompt with words"):
        wan("  ", 1)
    assert wan.batch([], []) == []


def test_a_diverged_model_is_an_error_and_not_a_black_video(folder):
    broken = Wan.load(folder)
    with torch.no_grad():
        broken.pipeline.transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        broken("a red ball", 1)


def test_the_provenance_follows_weights_and_setting(folder, wan, tmp_path):
    provenance = wan.provenance
    assert provenance["num_inference_steps"] == "2" and provenance["guidance_scale"] == "2.0"
    assert provenance["weights_sha256"] == hash_checkpoint(folder)
    assert "UniPC" in provenance["scheduler"] and f"flow_shift {TINY.flow_shift}" in provenance["scheduler"]
    assert wan.with_setting(num_inference_steps=3).provenance != provenance
    shutil.copytree(folder, tmp_path / "copy")
    assert hash_checkpoint(tmp_path / "copy") == provenance["weights_sha256"]
    file = next((tmp_path / "copy").rglob("vae/*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert hash_checkpoint(tmp_path / "copy") != provenance["weights_sha256"]


def test_the_hubs_cache_identifies_weights_without_reading_them(tmp_path):
    """The cache stores a large file under its sha256 and links to it; a file stored in place must hash to the same."""
    import hashlib

    name = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / name).write_bytes(b"weights")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a.safetensors").symlink_to(tmp_path / "blobs" / name)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.safetensors").write_bytes(b"weights")
    assert hash_checkpoint(tmp_path / "linked") == hash_checkpoint(tmp_path / "plain")
    with pytest.raises(ValueError, match="no safetensors"):
        hash_checkpoint(tmp_path / "blobs")


def test_a_saved_pipeline_and_the_shipped_weights_name_no_folder_of_the_machine_they_came_from(tmp_path):
    pipeline = Wan.load(weights_folder() / "wan").pipeline  # its VAE's config now holds the folder it was read from
    save_pipeline(pipeline, tmp_path / "again", DEFAULTS)
    for file in [*weights_folder().rglob("*.json"), *(tmp_path / "again").rglob("*.json")]:
        values = json.loads(file.read_text())
        named = values.get("_name_or_path", "") if isinstance(values, dict) else ""
        assert not named, f"{file} names {named}"
