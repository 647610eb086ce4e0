"""Injectors of the tier "gpu" on the shipped small Wan: twins from one VAE that differ in a tube on an object only."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from cac_align.cli.injection_models import load_models
from cac_align.core.encoding import write_mp4
from cac_align.core.weights import shipped
from cac_align.data.injection.injector import Edit, MovingObject, SourceClip
from cac_align.data.injection.injectors.latent import LATENT_INJECTORS, latent_injectors
from cac_align.data.injection.models import LatentClip, Models, padded
from cac_align.data.injection.registry import usable_injectors
from cac_align.data.injection.run import SourceFile, inject
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources.masks import dilated
from cac_align.data.injection.truth import measure, twin_difference
from cac_align.data.injection.tubes import bezier_outline, bezier_tube
from cac_align.data.injection.visible import why_sham_rejected
from cac_align.data.records import all_records
from cac_align.miniature.world.settings import PLAYGROUND
from cac_align.miniature.world.world import make_clip

PROMPT = "a red box slides to the right on grass"


def sliding_box(frames=13, height=64, width=64) -> SourceClip:
    """A red box with a darker foot that slides over a green ground, with its exact masks."""
    pixels = np.full((frames, height, width, 3), (60, 140, 60), np.uint8)
    pixels[:, : height // 2] = (150, 190, 230)
    masks = np.zeros((frames, height, width), bool)
    for t in range(frames):
        left = 2 + 2 * t
        masks[t, 26:46, left : left + 20] = True
        pixels[t, 26:46, left : left + 20] = (200, 50, 40)
        pixels[t, 40:46, left : left + 20] = (120, 30, 30)
    return SourceClip(pixels, 16.0, (MovingObject(masks, "box"),), prompt=PROMPT)


@pytest.fixture(scope="module")
def models() -> Models:
    return load_models(Injection(wan="miniature", device="cpu"))


@pytest.fixture(scope="module")
def edits(models) -> dict[str, Edit]:
    source = sliding_box()
    before = source.pixels.copy()
    found = {
        injector.name: injector.apply(source, np.random.default_rng(4), 0.8)
        for injector in latent_injectors(models.redrawer)
    }
    assert np.array_equal(source.pixels, before)
    return found


def round_trip(models, pixels):
    redrawer = models.redrawer
    count, height, width = pixels.shape[:3]
    return redrawer.decode(redrawer.encode(padded(pixels, redrawer.form(count, height, width))))[
        :count, :height, :width
    ]


@pytest.mark.parametrize("name", LATENT_INJECTORS)
def test_twins_differ_near_the_object_and_are_the_round_trip_elsewhere(name, edits, models):
    source, edit = sliding_box(), edits[name]
    assert edit.anomalous.shape == edit.sham.shape == source.pixels.shape
    truth = measure(edit)
    assert truth is not None and (edit.subject <= source.objects[0].masks).all()
    plain = round_trip(models, source.pixels)
    # 20 px of an object, a tube of up to 1.2 of it, a cell and its matte; what is swapped lies one object further away.
    near = dilated(source.objects[0].masks, 40 if name == "latent_swap" else 20)
    if name == "latent_shuffle":  # one place for all frames
        near = np.broadcast_to(near.any(0), near.shape)
    for twin in (edit.anomalous, edit.sham):
        assert np.array_equal(twin[~near], plain[~near])
        assert np.array_equal(twin[0], plain[0])
    changed = twin_difference(edit.anomalous, edit.sham)
    assert changed[~near].max(initial=0) == 0 and changed[near].max() > 16
    if name != "redraw":
        assert np.array_equal(edit.sham, plain)


def test_a_redraw_begins_at_the_stated_noise_levels_and_the_sham_stays_close(edits, models):
    numbers = edits["redraw"].numbers
    assert 0.4 <= numbers["noise_level"] <= 0.8 and 0 < numbers["sham_noise_level"] <= 0.15
    assert {numbers["noise_level"], numbers["sham_noise_level"]} <= {round(x, 4) for x in models.redrawer.noise_levels}
    plain = round_trip(models, sliding_box().pixels).astype(float)
    strong, faint = (np.abs(twin - plain).mean() for twin in (edits["redraw"].anomalous, edits["redraw"].sham))
    assert 0 < faint < strong / 2


@pytest.mark.parametrize("name", ["latent_noise", "redraw"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(name, edits, models):
    apply = {injector.name: injector.apply for injector in latent_injectors(models.redrawer)}[name]
    again = apply(sliding_box(), np.random.default_rng(4), 0.8)
    assert np.array_equal(again.anomalous, edits[name].anomalous) and np.array_equal(again.sham, edits[name].sham)
    if name == "latent_noise":
        other = apply(sliding_box(), np.random.default_rng(5), 0.8)
        assert not np.array_equal(other.anomalous, edits[name].anomalous)


def test_a_clip_is_encoded_once_for_all_injectors_and_severities(models):
    class Counting:
        encoded = 0

        def __getattr__(self, name):
            return getattr(models.redrawer, name)

        def encode(self, pixels):
            self.encoded += 1
            return models.redrawer.encode(pixels)

    # A form that fits no stride: size and length are kept.
    counting, source = Counting(), sliding_box(frames=12, height=70, width=66)
    apply = {injector.name: injector.apply for injector in latent_injectors(counting)}
    for name in ("latent_noise", "latent_swap"):
        edit = apply[name](source, np.random.default_rng(0), 0.5)
        assert edit.anomalous.shape == edit.sham.shape == (12, 70, 66, 3)
    assert counting.encoded == 1


class Strides:
    strides = (4, 8)


def test_cells_are_weighed_by_how_much_of_them_is_covered():
    """Worked by hand: 4 frames and 8 × 8 px to a cell, frame 0 alone; half covered is weight 1."""
    clip = LatentClip(np.zeros((1, 3, 6, 6), np.float32), np.zeros((9, 48, 48, 3), np.uint8), Strides())
    tube = np.zeros((9, 48, 48), bool)
    tube[0, :8, :8] = True  # the whole cell
    tube[1:3, :8, 8:16] = True  # two of four frames: half
    tube[5, 8:16, :8] = True  # one of four: a quarter
    expected = np.zeros((3, 6, 6))
    expected[0, 0, 0], expected[1, 0, 1], expected[2, 1, 0] = 1, 1, 0.5
    weights = clip.cells(tube)
    assert np.array_equal(weights, expected)
    pixels = clip.pixels_of(weights)
    assert pixels[0, :8, :8].all() and pixels[1:5, :8, 8:16].all() and pixels[5:, 8:16, :8].all()
    assert pixels.sum() == 64 * (1 + 4 + 4)
    matte = clip.matte(weights)
    assert (matte[pixels] == 1).all() and 0 < matte[0, 0, 12] < 1
    assert (matte[:, 32:] == 0).all() and (matte[0, :, 24:] == 0).all()  # nothing from two cells away on


def test_a_tube_travels_with_the_object_and_is_empty_outside_its_frames():
    thing = sliding_box().objects[0]
    tube = bezier_tube(thing, np.random.default_rng(1), 4, 12, 1.0)
    assert not tube[:4].any() and not tube[13:].any() and tube[4:13].any((1, 2)).all()
    centre = [np.argwhere(tube[t]).mean(0)[1] for t in (6, 10)]
    assert centre[1] - centre[0] == pytest.approx(8, abs=1)  # 2 px per frame
    assert tube[8].sum() > tube[4].sum()  # it swells
    radii = np.linalg.norm(bezier_outline(np.random.default_rng(2)), axis=1)
    assert radii.min() > 0.5 and radii.max() < 1.3 and len(radii) == 48


def test_a_sham_that_looks_changed_is_refused():
    source = sliding_box()
    shown = source.pixels.copy()
    shown[8, 20:44, 20:44] = 0
    same = Edit(shown, source.pixels, "Object Distortion", "redraw", "r", "r", source.objects[0].masks)
    settings = Injection()
    assert why_sham_rejected(same, source.pixels, settings) is None
    swapped = Edit(source.pixels, shown, "Object Distortion", "redraw", "r", "r", source.objects[0].masks)
    assert str(why_sham_rejected(swapped, source.pixels, settings)).startswith("the sham shows")


def test_without_a_checkpoint_the_tier_is_named_and_with_one_it_is_added(models):
    usable, missing = usable_injectors(("gpu",))
    assert usable == {} and set(missing) == set(LATENT_INJECTORS) and "injection.wan" in missing["redraw"]
    usable, missing = usable_injectors(("core",), (), models)
    assert set(LATENT_INJECTORS) - {"redraw"} < set(usable) and set(missing) == {"redraw"}
    assert set(usable_injectors(("core",), ["redraw", "warp"], models)[0]) == {"redraw", "warp"}
    assert not set(LATENT_INJECTORS) & set(usable_injectors(("core",))[0])
    with pytest.raises(ValueError, match="models"):
        inject([SourceFile(Path("a.mp4"), "a.mp4")], Path("out"), Injection(wan="miniature"))


def test_a_checkpoint_without_encoder_weights_is_a_clear_error(tmp_path):
    broken = tmp_path / "half"
    shutil.copytree(shipped("wan"), broken)
    file = next((broken / "vae").glob("*.safetensors"))
    save_file({name: value for name, value in load_file(file).items() if not name.startswith("encoder.")}, file)
    with pytest.raises(ValueError, match=r"half: weights are missing.*encoder"):
        load_models(Injection(wan=str(broken)))
    with pytest.raises(ValueError, match=r"injection\.wan: nowhere/at/all: no such folder"):
        load_models(Injection(wan="nowhere/at/all"))


def test_a_run_makes_pairs_and_resumes_a_folder_of_an_older_release(models, tmp_path):
    clip = make_clip(106, PLAYGROUND, anomalous=False)  # a box that slides far enough to be followed
    write_mp4(tmp_path / "a.mp4", clip.pixels, clip.fps)
    files = [SourceFile(tmp_path / "a.mp4", "a.mp4", clip.prompt)]
    settings = Injection(tiers=["gpu"], wan="miniature", device="cpu", min_seconds=1.0, pixel_format="rgb")
    result = inject(files, tmp_path / "out", settings, n=1, seed=3, models=models)
    assert result.pairs == 1 and not result.audit["failed"]
    for record in all_records(result.records):
        assert record.extra.get("hard_normal") or record.extra["injector"] in LATENT_INJECTORS
    stamp = tmp_path / "out" / "injection.json"
    made = json.loads(stamp.read_text())
    assert made["models"]["weights_sha256"] == models.redrawer.wan.weights_hash
    stamp.write_text(json.dumps({**made, "settings": {k: v for k, v in made["settings"].items() if k != "device"}}))
    inject(files, tmp_path / "out", settings, n=1, seed=3, models=models)
    stamp.write_text(json.dumps({**made, "models": {**made["models"], "weights_sha256": "other"}}))
    with pytest.raises(ValueError, match="other models"):
        inject(files, tmp_path / "out", settings, n=1, seed=3, models=models)


def test_keys_that_a_release_added_have_their_defaults_in_an_older_folder(tmp_path):
    write_mp4(tmp_path / "a.mp4", sliding_box(frames=25, width=96).pixels, 16.0)
    files, settings = [SourceFile(tmp_path / "a.mp4", "a.mp4")], Injection(tiers=["core"])
    inject(files, tmp_path / "out", settings, n=1, workers=1)
    stamp = tmp_path / "out" / "injection.json"
    made = json.loads(stamp.read_text())
    older = {name: value for name, value in made["settings"].items() if name not in ("wan", "device", "vae")}
    stamp.write_text(json.dumps({**made, "settings": older}))
    inject(files, tmp_path / "out", settings, n=1, workers=1)
    with pytest.raises(ValueError, match="other settings"):
        inject(files, tmp_path / "out", Injection(tiers=["core"], vae="v"), n=1, workers=1)
