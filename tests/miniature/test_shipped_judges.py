"""The judges that ship: how good they are on clips that no training has seen, and that they are as small as they should be."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoProcessor

from cac_align.cac.augmentations import FOUR_PHASES
from cac_align.cac.judge_settings import read_two_turn
from cac_align.core.judgement import Box
from cac_align.core.weights import shipped, weights_folder
from cac_align.miniature.world.settings import PLAYGROUND, STUDIO
from cac_align.miniature.world.world import make_clip
from cac_align.rewards.cac import CaC
from cac_align.vlm.local import LocalVlm
from research.experiments.judge_figures import cac_figures, evaluate
from research.training.generated import held_out_clips


def needs(name: str) -> Path:
    if not (weights_folder() / name / "model.safetensors").is_file():
        pytest.skip(f"the weights of {name!r} are not built yet: `make weights`")
    return weights_folder() / name


def test_both_judges_weigh_at_most_nine_megabytes():
    folders = [needs("cac"), needs("unified")]
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) <= 9e6


def test_the_shipped_cac_judges_held_out_clips():
    # Measured on these 60 clips: accuracy .95, recall of normal ones 1.00, AUROC .93, temporal IoU .96, spatial IoU .63 (on 1,000: .93, 1.00, .94, .88, .57).
    figures = evaluate(needs("cac"), "cac", 60, first_seed=2_500_000, worlds=(PLAYGROUND,))["playground"]
    assert figures["no_verdict"] <= 1
    assert figures["accuracy"] >= 0.9 and figures["recall_normal"] >= 0.93 and figures["auroc"] >= 0.88
    assert figures["temporal_iou"] >= 0.85 and figures["spatial_iou"] >= 0.5
    clips = [make_clip(2_500_001 + 2 * number, PLAYGROUND, anomalous=True) for number in range(30)]
    to_be_seen = sum(bool((clip.pixels[::4] != clip.normal_pixels[::4]).any()) for clip in clips)  # four of 16 fps
    shown = sum(defect["shown"] for defect in figures["recall_by_defect"].values())
    assert 0 <= to_be_seen - shown <= figures["no_verdict"] and to_be_seen < len(clips)


def test_figures_of_several_views_are_those_of_their_mean():
    clips = [make_clip(2_500_100 + number, PLAYGROUND, anomalous=number % 2 == 1) for number in range(12)]
    prompts, videos = [clip.prompt for clip in clips], [clip.video() for clip in clips]
    judges = [CaC.load(str(needs("cac")), tta=(augmentation,), batch_size=32) for augmentation in ("as_is", "later")]
    each = np.asarray([[score.parts["log_odds"] for score in judge(prompts, videos)] for judge in judges])
    odds, tta, normal = each.mean(0), ("as_is", "later"), np.arange(12) % 2 == 0
    threshold = json.loads((needs("cac") / "cac_align.json").read_text())["tta_thresholds"]["as_is, later"]
    sound = (odds > threshold) | (each > 0).all(0)  # "abnormal" needs an augmentation that says so
    figures = evaluate(needs("cac"), "cac", 12, first_seed=2_500_100, worlds=(PLAYGROUND,), tta=tta)["playground"]
    assert figures["accuracy"] == pytest.approx(np.mean(sound == normal), abs=1e-4)
    assert figures["auroc"] == pytest.approx(np.mean(odds[normal][:, None] > odds[~normal]), abs=1e-4)


def test_what_one_scan_is_not_shown_another_is():
    """Flickers of which the scan at 4 fps shows no frame: without augmentation a judge can only guess, with four it finds them."""
    clips = (make_clip(2_610_001 + 2 * number, PLAYGROUND, anomalous=True) for number in range(400))
    between = (
        clip
        for clip in clips
        if clip.defects[0].subtype == "flicker" and clip.defects[0].frames.isdisjoint(range(0, 17, 4))
    )
    hidden = list(islice(between, 8))
    prompts, videos = [clip.prompt for clip in hidden], [clip.video() for clip in hidden]
    caught = [
        sum(score.evidence.status == "abnormal" for score in CaC.load(str(needs("cac")), tta=tta)(prompts, videos))
        for tta in (("as_is",), FOUR_PHASES)
    ]
    assert len(hidden) == 8 and caught[0] <= 1 and caught[1] >= 7


def test_the_shipped_cac_judges_what_the_shipped_wan_draws():
    vlm = LocalVlm.load(needs("cac"), device="cpu", batch_size=32)
    figures = cac_figures(vlm, held_out_clips(60), read_two_turn(needs("cac")))
    assert figures["no_verdict"] <= 2
    assert figures["accuracy"] >= 0.65 and figures["recall_normal"] >= 0.8 and figures["recall_abnormal"] >= 0.45


@pytest.mark.xfail(
    strict=True, reason="letters and limbs are not learnt yet (docs/lab/limits.md); the day they are, this mark must go"
)
def test_the_shipped_cac_is_clearly_right_about_the_studio():
    assert evaluate(needs("cac"), "cac", 36, first_seed=2_500_000, worlds=(STUDIO,))["studio"]["accuracy"] >= 0.85


def test_the_shipped_unified_scores_held_out_clips():
    assert (
        evaluate(needs("unified"), "unified", 12, first_seed=2_500_000, worlds=(PLAYGROUND,))["playground"]["unscored"]
        == 0
    )


def test_the_shipped_unified_tells_a_fitting_prompt_from_another():
    figures = evaluate(needs("unified"), "unified", 40, first_seed=2_500_000, worlds=(PLAYGROUND,))["playground"]
    # Measured on 60 clips: 5.0 against 3.3.
    assert figures["alignment"] > figures["alignment_of_another_prompt"] + 1.0


def test_the_shipped_tokenizer_has_the_trap():
    tokenizer = AutoProcessor.from_pretrained(needs("cac")).tokenizer
    assert tokenizer.tokenize('"status": "abnormal"')[-3:] == ["ab", "normal", '"']
    assert Box(0, 0, 1, 1) and shipped  # the package's own door to the same folder
