"""Draws docs/hero.gif: five candidates of one prompt, the judge's boxes blinking, the scores underneath.

python docs/make_hero.py --out out/hero

The small Wan that ships makes the candidates, the default reward (UnifiedReward + CaC) scores them, and the boxes are
CaC's. The picture shows what a right answer looks like: the prompt was chosen by hand among those of the demo on which
the judge agrees with the miniature's oracle about all five videos (8 of the first 24), and the script refuses any
other. How often the judge is wrong is in docs/repair.md and docs/table2.md. The folder keeps videos and scores, so that
the same command draws again without judging again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cac_align import Video, best_of_n, load_reward
from cac_align.core.judgement import Anomaly
from cac_align.evaluation.pages.page import confirmed_anomalies
from cac_align.generation.build import GeneratorRecipe, load_generator
from cac_align.generation.selection import Selection
from cac_align.miniature.demo import oracle_verdicts, playground_prompts

TILE, GAP, HEAD, FOOT = 176, 10, 34, 62  # pixels
HOLD = 2  # drawn frames per frame of the video: the box is on in one and off in the other
PAPER, INK, QUIET, CHOSEN, BAD = "#ffffff", "#1a1b1e", "#5c5f66", "#1864ab", "#e03131"


def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: the same letters on every machine."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def marked_at(anomaly: Anomaly, index: int, time_s: float, fps: float) -> tuple[int, int, int, int] | None:
    """The box of an anomaly at a frame, in thousandths: that of the nearest boxed frame, where the frame lies in the
    window or within a frame of it; None elsewhere.
    """
    if not anomaly.boxes or anomaly.window is None:
        return None
    near = min(anomaly.boxes, key=lambda frame: abs(frame - index))
    inside = anomaly.window.start_s - 1 / fps <= time_s <= anomaly.window.end_s + 1 / fps
    return tuple(anomaly.boxes[near][0].to_json()) if inside and anomaly.boxes[near] else None


def draw_boxes(
    picture: ImageDraw.ImageDraw, left: int, anomalies: tuple[Anomaly, ...], at: tuple[int, float, float]
) -> None:
    """The boxes of one candidate at (frame, seconds, frames per second)."""
    for anomaly in anomalies:
        if (box := marked_at(anomaly, *at)) is not None:
            x0, y0, x1, y1 = (round(value * TILE / 1000) for value in box)
            place = (left + x0, HEAD + y0, left + x1, HEAD + y1)
            picture.rectangle(place, outline=BAD, width=4)


def told(reason: str, prompt: str) -> str:
    """A reason without the words of the prompt: "the blue ball suddenly disappears" becomes "suddenly disappears"."""
    known = {"the", *prompt.split()}
    words = reason.split()
    return " ".join(words[next((i for i, word in enumerate(words) if word not in known), 0) :])


def frames_of(selection: Selection) -> list[Image.Image]:
    """The drawn frames of the animation."""
    videos = [Video.open(path) for path in selection.candidates]
    pixels = [video.frames(range(len(video))).pixels for video in videos]
    anomalies = [confirmed_anomalies(score.evidence) for score in selection.scores]
    size = (len(videos) * (TILE + GAP) + GAP, HEAD + TILE + FOOT)
    drawn = []
    for step in range(HOLD * len(videos[0])):
        index, lit = step // HOLD, step % 2 == 0
        image = Image.new("RGB", size, PAPER)
        picture = ImageDraw.Draw(image)
        title = f"“{selection.prompt}”: five candidates. Red: where CaC sees a defect. Below: the score, 0 to 1."
        picture.text((GAP, 8), title, fill=INK, font=font(15))
        for place, (video, frames, score) in enumerate(zip(videos, pixels, selection.scores, strict=True)):
            left = GAP + place * (TILE + GAP)
            frame = Image.fromarray(frames[index]).resize((TILE, TILE), Image.Resampling.BICUBIC)
            image.paste(frame, (left, HEAD))
            found = anomalies[place]
            if lit:
                draw_boxes(picture, left, found, (index, float(video.times_s[index]), video.fps))
            chosen = place == selection.chosen
            if chosen:
                picture.rectangle((left - 3, HEAD - 3, left + TILE + 2, HEAD + TILE + 2), outline=CHOSEN, width=3)
            value = f"{score.value:.3f}" if score.scored else "no score"
            colour = CHOSEN if chosen else BAD if found else INK
            picture.text((left, HEAD + TILE + 7), value, fill=colour, font=font(20, bold=True))
            if chosen:
                picture.text((left + 76, HEAD + TILE + 12), "chosen", fill=CHOSEN, font=font(15))
            said = told(found[0].reason, selection.prompt) if found else "nothing found"
            picture.text((left, HEAD + TILE + 35), said, fill=QUIET, font=font(15))
        drawn.append(image)
    return drawn


def write_gif(frames: list[Image.Image], path: Path, frame_ms: int = 110) -> None:
    """One palette for all frames, so that colours do not flicker."""
    sample = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames[::4]]))
    palette = sample.quantize(255, method=Image.Quantize.MEDIANCUT)
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    small[0].save(path, save_all=True, append_images=small[1:], duration=frame_ms, loop=0, optimize=True)


def is_right(selection: Selection) -> bool:
    """Whether the judge agrees with the oracle about every candidate."""
    judged = [None if score.evidence is None else score.evidence.status for score in selection.scores]
    return judged == [verdict.status for verdict in oracle_verdicts([selection])[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/hero"), help="folder for videos and scores")
    parser.add_argument("--gif", type=Path, default=Path(__file__).with_name("hero.gif"), help="file to write")
    parser.add_argument("--prompt", type=int, default=3, help="which prompt of the demo's list, counted from 1")
    options = parser.parse_args()
    generator, reward = load_generator(GeneratorRecipe()), load_reward()
    prompts = playground_prompts(options.prompt)[-1:]
    seed = 5 * (options.prompt - 1)  # the noises of `cac-align demo --prompts N`
    (selection,) = best_of_n(prompts, generator, reward, n=5, seed=seed, out=options.out)
    if not is_right(selection):
        raise SystemExit(f"the judge is wrong about a video of {selection.prompt!r}; choose another --prompt")
    write_gif(frames_of(selection), options.gif)
    print(f"{options.gif}: {options.gif.stat().st_size / 1e6:.2f} MB; {selection.reason}")


if __name__ == "__main__":
    main()
