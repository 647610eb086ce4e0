"""A training stage in miniature of the miniature: a random Qwen3-VL that answers in one token, and a folder of clips with samples.

``model_folder``: whole answers and whole lines of the instructions are single tokens, and the model is taught to say one of four answers
(normal, abnormal with a window, abnormal with a box, no JSON) with comparable odds, in both turns; so rollouts are short, and they differ.
``data_folder``: six clips of 17 frames at 16 fps, three of them anomalous, with records.jsonl and a file of samples per stage.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenizers import AddedToken

from cac_align.cac.prompts import wording_text
from cac_align.core.answer import write_answer
from cac_align.core.encoding import write_mp4
from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.data.records import Record, write_records
from tests.support import tiny_qwen

FPS, NUM_FRAMES, SIDE = 16.0, 17, 32
SCAN, LOOK = tuple(range(0, 17, 4)), tuple(range(4, 11, 2))
TIMES = tuple(frame / FPS for frame in range(NUM_FRAMES))
TRUE = Anomaly(
    "Object Distortion",
    Window(0.25, 0.625),
    "the ball melts",
    "ball",
    {frame: (Box(100, 200, 500, 600),) for frame in range(4, 11)},
    "salient",
)


def answer(anomalies, number, frames) -> str:
    return write_answer(
        chain_of_thought="", anomalies=anomalies, number=number, frames=frames, times_s=[TIMES[f] for f in frames]
    )


NORMAL = answer((), 1, SCAN)
WINDOW = answer((TRUE,), 1, SCAN)
BOXED = (
    '{"COT": "", "status": "abnormal", "anomalies": [{"Attributed Label": "Object Distortion", "Reason for Anomaly": "it melts", '
    + ('"Problem Region": "ball", "Attributed Time Region": "Frame 0-1", "BBOX": {"Frame 0": [100, 200, 500, 600]}}]}')
)
BROKEN = '{"COT": "no end'
ANSWERS = (NORMAL, WINDOW, BOXED, BROKEN)


def tokenizer():
    made = tiny_qwen.small_tokenizer.__wrapped__(300)
    lines = {
        line
        for wording in ("full", "brief")
        for turn in ("one", "two")
        for line in wording_text(wording, f"turn_{turn}").split("\n")
    }
    whole = [
        *ANSWERS,
        *sorted(line for line in lines if len(line) > 8 and "{prompt}" not in line and "{num_frames}" not in line),
    ]
    made.add_tokens([AddedToken(text, special=False, normalized=False) for text in whole])
    return made


def model_folder(folder: Path, *, logits=(6.0, 6.5, 6.2, 5.0), seed: int = 0) -> Path:
    """logits: of the four ``ANSWERS`` after the prompt, above the noise of a random head."""
    made = tokenizer()
    ids = made.convert_tokens_to_ids
    (start,) = made("\n", add_special_tokens=False).input_ids
    net = tiny_qwen.model(made, hidden=32, heads=2, seed=seed)
    end = ids("<|im_end|>")
    rivals = [(start, ids(text), logit) for text, logit in zip(ANSWERS[1:], logits[1:], strict=True)]
    rivals += [(ids(text), end, 14.0) for text in ANSWERS[1:]]
    tiny_qwen.teach_chain(net, [start, ids(NORMAL)], log_odds=logits[0], rivals=[*rivals, (ids(NORMAL), end, 14.0)])
    net.save_pretrained(folder)
    tiny_qwen.processor(made).save_pretrained(folder)
    return folder


def data_folder(folder: Path, *, clips: int = 6) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    records, samples = [], {1: [], 2: [], 3: []}
    for number in range(clips):
        broken = number % 2 == 1
        pixels = np.random.default_rng(number).integers(0, 256, (NUM_FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
        name = f"clip{number}"
        write_mp4(folder / f"{name}.mp4", pixels, fps=FPS)
        status = "abnormal" if broken else "normal"
        anomalies = (TRUE,) if broken else ()
        records.append(Record(name, f"{name}.mp4", f"a ball {number}", FPS, NUM_FRAMES, SIDE, SIDE, status, anomalies))
        samples[1].append(
            {"record": name, "task": "frame", "window": None, "frame": 6, "answer": answer(anomalies, 2, (6,))}
        )
        samples[2].append(
            {"record": name, "task": "scan", "window": None, "frame": None, "answer": WINDOW if broken else NORMAL}
        )
        look = {"record": name, "task": "look", "window": [0.25, 0.625], "frame": None}
        samples[2].append({**look, "answer": answer(anomalies, 2, LOOK)})
        samples[3].append({"record": name, "task": "scan", "window": None, "frame": None, "answer": ""})
    write_records(folder / "records.jsonl", records)
    for stage, rows in samples.items():
        (folder / f"stage{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
