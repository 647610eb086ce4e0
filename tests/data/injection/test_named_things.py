"""Things that a recipe names: what a segmenter says is what injectors change, and what it loses is not guessed."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import transformers
from transformers import Sam2ImageProcessor, Sam2VideoConfig, Sam2VideoModel, Sam2VideoProcessor

from cac_align.cli.injection_models import load_models
from cac_align.core.encoding import write_mp4
from cac_align.data.injection.injector import NotApplicable
from cac_align.data.injection.models import Models
from cac_align.data.injection.registry import INJECTORS
from cac_align.data.injection.run import SourceFile, inject
from cac_align.data.injection.settings import Injection
from cac_align.data.injection.sources import named_things
from cac_align.data.injection.sources.clips import UnusableSource, prepared_clip
from cac_align.data.injection.sources.masks import dilated
from cac_align.data.injection.sources.named_things import Carried, GroundedSam, named_objects
from cac_align.data.records import all_records
from tests.data.injection.squares import square_clip

FRAMES = 32
TWO = square_clip(frames=FRAMES, starts=((10, 20), (70, 80)), steps=((3, 0), (0, 0)))  # the second one stands still


@dataclass(frozen=True)
class Scripted:
    """A segmenter that says what it is told, whatever the frames."""

    things: tuple[Carried, ...]

    @property
    def provenance(self):
        return {"sam2": "scripted"}

    def carried(self, pixels):
        assert pixels.shape[0] == len(self.things[0].masks) if self.things else True
        return self.things


def both() -> Scripted:
    return Scripted((Carried("lamp", TWO.objects[1].masks), Carried("cart", TWO.objects[0].masks)))


def test_objects_are_exactly_what_the_segmenter_says():
    clip = prepared_clip(TWO.pixels, 16.0, segmenter=both())
    assert {thing.noun for thing in clip.objects} == {"lamp", "cart"} and clip.lost_things == ()
    for thing in clip.objects:
        exact = TWO.objects[thing.noun == "lamp"].masks
        assert np.array_equal(thing.masks, exact)
    moving = prepared_clip(TWO.pixels, 16.0)
    assert len(moving.objects) == 1  # without it, only what moves


@pytest.mark.parametrize("name", ["warp", "flicker", "identity_change", "freeze", "vanish", "omit_part", "split"])
def test_core_injectors_change_the_named_thing_only(name):
    clip = prepared_clip(TWO.pixels, 16.0, segmenter=Scripted((Carried("cart", TWO.objects[0].masks),)))
    edit = INJECTORS[name].apply(clip, np.random.default_rng(1), 0.8)
    way = dilated(TWO.objects[0].masks.any(0), 12)  # of all frames: what freezes is where it was before
    assert "cart" in edit.reason and not (edit.subject & ~way).any()
    lamp = dilated(TWO.objects[1].masks, 2)
    assert np.array_equal(edit.anomalous[lamp], TWO.pixels[lamp]) and np.array_equal(edit.sham[lamp], TWO.pixels[lamp])
    assert not np.array_equal(edit.anomalous, edit.sham)


def test_what_is_behind_a_thing_that_stands_still_is_not_known():
    clip = prepared_clip(TWO.pixels, 16.0, segmenter=both())
    assert clip.background_known is not None
    lamp, cart = TWO.objects[1].masks, TWO.objects[0].masks
    assert not clip.background_known[lamp].any() and clip.background_known[cart].all()
    alone = prepared_clip(TWO.pixels, 16.0, segmenter=Scripted(both().things[:1]))
    with pytest.raises(NotApplicable):
        INJECTORS["vanish"].apply(alone, np.random.default_rng(0), 0.8)
    assert INJECTORS["flicker"].apply(alone, np.random.default_rng(0), 0.8).region == "lamp"


def masks(**changes) -> np.ndarray:
    """A square of 20 × 20 px on each of 10 frames; frame=rows, columns changes one, frame=None empties it."""
    found = np.zeros((10, 60, 80), bool)
    found[:, 20:40, 30:50] = True
    for name, place in changes.items():
        frame = int(name.removeprefix("frame"))
        found[frame] = False
        if place is not None:
            found[frame][place] = True
    return found


BORDER = np.s_[20:40, 60:80]


@pytest.mark.parametrize(
    "given, reason",
    [
        (masks(), None),
        (masks(frame4=None), "lost mid-shot: the dog has no mask on frame 5 of 10"),
        (masks(frame8=None, frame9=None), "lost mid-shot: the dog ends on frame 8 of 10, inside the picture"),
        (masks(frame0=None), "lost mid-shot: the dog ends on frame 2 of 10, inside the picture"),
        (masks(frame8=BORDER, frame9=None), None),
        (masks(frame0=None, frame1=BORDER), None),
        (masks(frame5=np.s_[10:50, 20:60]), "mask jumps: the dog has 400 px and then 1600 on frame 6"),
        (np.zeros((10, 60, 80), bool), "not segmented: the dog has a box and no mask"),
        (np.ones((10, 60, 80), bool), "too small or too large: the dog covers 100.00% of the picture"),
    ],
    ids=["followed", "gap", "ends", "begins", "leaves", "enters", "jumps", "empty", "everything"],
)
def test_what_is_lost_is_named_and_not_guessed(given, reason):
    objects, lost = named_objects([Carried("dog", given)])
    assert lost == (() if reason is None else (reason,)) and len(objects) == (reason is None)


def test_a_run_changes_named_things_and_says_what_was_lost(tmp_path):
    gap = TWO.objects[1].masks.copy()
    gap[7] = False
    write_mp4(tmp_path / "a.mp4", TWO.pixels, 16.0)
    settings = Injection(
        things=["cart", "lamp"], grounding_dino="x", sam2="x", seconds=31 / 16, injectors=["flicker"], hard_normals=0
    )
    files = [SourceFile(tmp_path / "a.mp4", "a.mp4")]
    segmenter = Scripted((Carried("cart", TWO.objects[0].masks), Carried("lamp", gap)))
    with pytest.raises(ValueError, match=r"injection\.sam2 names x, but no models"):
        inject(files, tmp_path / "out", settings, n=1)
    found = inject(files, tmp_path / "out", settings, n=1, models=Models(segmenter=segmenter))
    assert found.pairs == 1
    anomalous = next(record for record in all_records(found.records) if record.anomalies)
    assert anomalous.anomalies[0].region == "cart"
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert row["injector"] == "things" and row["reason"].startswith("lost mid-shot: the lamp has no mask on frame 8")
    with pytest.raises(UnusableSource, match="no named thing: lost mid-shot: the lamp"):
        prepared_clip(TWO.pixels, 16.0, segmenter=Scripted((Carried("lamp", gap),)))
    with pytest.raises(UnusableSource, match="none of them is found"):
        prepared_clip(TWO.pixels, 16.0, segmenter=Scripted(()))
    made = json.loads((tmp_path / "out" / "injection.json").read_text())
    assert made["models"] == {"sam2": "scripted"}


# ---- random checkpoints of the real classes ------------------------------------------------------------------------


def random_sam(folder) -> None:
    """A SAM 2 video model of about a million weights that takes every box for a thing."""
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [64, 64],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 4],
        "blocks_per_stage": [1, 1, 1, 1],
        "global_attention_blocks": [],
        "window_size_per_stage": [4, 4, 4, 4],
        "window_positional_embedding_background_size": [4, 4],
    }
    width = 128  # twice the memory's 64 channels, which transformers has written into its attention
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": width,
    }
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": width, "image_size": 64, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": width, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
        image_size=64,
        memory_attention_hidden_size=width,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_attention_rope_feat_sizes=[4, 4],
        memory_encoder_hidden_size=width,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=width,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=32,
        memory_fuser_num_layers=1,
    )
    torch.manual_seed(0)
    model = Sam2VideoModel(config)
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(5.0)  # everything is there
    model.save_pretrained(folder)
    size = {"height": 64, "width": 64}
    video = transformers.Sam2VideoVideoProcessor(size=size)
    Sam2VideoProcessor(Sam2ImageProcessor(size=size), video).save_pretrained(folder)


def random_detector(folder) -> None:
    """A GroundingDINO of 100,000 weights."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "red", "box"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    backbone = transformers.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=10,
        max_text_len=16,
    )
    torch.manual_seed(0)
    transformers.GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = transformers.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    transformers.GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    random_sam(folder / "sam")
    random_detector(folder / "dino")
    return folder


def settings(checkpoints, **changes) -> Injection:
    given = {"grounding_dino": str(checkpoints / "dino"), "sam2": str(checkpoints / "sam"), "things": ["red box"]}
    return Injection(**{**given, "min_detection": 0.001, "device": "cpu", **changes})


def test_the_real_classes_carry_boxes_through_the_shot(checkpoints):
    segmenter = load_models(settings(checkpoints)).segmenter
    assert isinstance(segmenter, GroundedSam)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 48, 80, 3), np.uint8)
    things = segmenter.carried(pixels)
    assert 1 <= len(things) <= 10 and all(thing.noun == "red box" for thing in things)
    assert all(thing.masks.shape == (5, 48, 80) and thing.masks.dtype == bool for thing in things)
    assert any(thing.masks.any((1, 2)).all() for thing in things)  # on frames before and after the box's own
    again = segmenter.carried(pixels)
    assert all(np.array_equal(one.masks, other.masks) for one, other in zip(things, again, strict=True))
    assert segmenter.provenance["things"] == "red box" and len(segmenter.provenance["sam2_sha256"]) == 64


def test_boxes_are_those_of_the_detector_on_the_middle_frame(checkpoints, monkeypatch):
    """By hand from the raw output: every query's best score over the words, its box from centre and size to px."""
    pixels = np.random.default_rng(1).integers(0, 256, (5, 48, 80, 3), np.uint8)
    model = transformers.GroundingDinoForObjectDetection.from_pretrained(checkpoints / "dino").eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoints / "dino")
    with torch.inference_mode():
        output = model(**processor(images=pixels[2], text="red box.", return_tensors="pt"))
    scores = output.logits[0].sigmoid().max(-1).values.numpy()
    x, y, width, height = (output.pred_boxes[0].numpy() * (80, 48, 80, 48)).T
    corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    corners = np.clip(corners, 0, (80, 48, 80, 48))
    level = float(np.median(scores))
    seen = []

    def tracked(tracker, pixels, start, boxes):
        seen.extend((start, np.asarray(box)) for box in boxes)
        return np.zeros((len(boxes), *pixels.shape[:3]), bool)

    monkeypatch.setattr(named_things, "_tracked", tracked)
    load_models(settings(checkpoints, min_detection=level)).segmenter.carried(pixels)
    allowed = corners[scores > level]
    assert seen and all(start == 2 for start, _ in seen)
    assert np.allclose(seen[0][1], corners[scores.argmax()], atol=1e-3)
    assert all(np.abs(allowed - box).max(1).min() < 1e-3 for _, box in seen)


def test_a_missing_or_other_checkpoint_is_named(checkpoints):
    dino, sam = str(checkpoints / "dino"), str(checkpoints / "sam")
    for changes, words in (
        ({"sam2": "no/such/folder"}, r"injection\.sam2: no/such/folder cannot be loaded: no such folder"),
        ({"sam2": dino}, r"injection\.sam2: .* it is a grounding-dino, expected a sam2_video"),
        ({"grounding_dino": sam}, r"injection\.grounding_dino: .* expected a grounding-dino"),
    ):
        with pytest.raises(ValueError, match=words):
            load_models(settings(checkpoints, **changes))
    for key in ("sam2", "grounding_dino", "things"):
        with pytest.raises(ValueError, match=f"together; {key} is missing"):
            settings(checkpoints, **{key: [] if key == "things" else ""})
