"""UnifiedReward's video point score: exact frames, strict reading, prompts that cannot break the slot."""

import hashlib
import math
import pickle
from dataclasses import dataclass, field

import numpy as np
import pytest

from cac_align.core.video import Video
from cac_align.rewards import unified
from cac_align.rewards.combine import combine
from cac_align.rewards.judges.upstream_prompt import text_digest
from cac_align.rewards.reward import Reward
from cac_align.rewards.unified import UnifiedReward, fill_prompt, own_prompt, read_axes, sample_indices, write_axes
from cac_align.vlm.protocol import Reply, Vlm

ANSWER = "Alignment Score (1-5): 2.4036\nPhysics Score (1-5): 3.0987\nStyle Score (1-5): 3.3889"


@dataclass
class Scripted:
    """Says the given replies in order (the last one for ever) and keeps what it was asked."""

    replies: list
    asked: list = field(default_factory=list)

    @property
    def provenance(self):
        return {"model": "scripted"}

    def answer(self, conversations, *, max_new_tokens, schema=None, readout=None):
        said = []
        for conversation in conversations:
            reply = self.replies[min(len(self.asked), len(self.replies) - 1)]
            said.append(Reply(reply) if isinstance(reply, str) else reply)
            self.asked.append(conversation)
        return said


def video(num_frames=81, name="video"):
    pixels = np.zeros((num_frames, 16, 16, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(num_frames)
    return Video.open(pixels, fps=16, name=name)


def score(reply, prompt="a red ball"):
    (found,) = UnifiedReward(Scripted([reply]))([prompt], [video()])
    return found


# ---- frames -------------------------------------------------------------------------------------------------------


def test_sixteen_frames_at_the_published_indices():
    assert sample_indices(81) == tuple(range(0, 76, 5))  # and never the last frame
    assert sample_indices(16) == tuple(range(16))
    assert sample_indices(33) == (0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
    # the pairwise benchmark's rule is another one (trap 5)
    assert sample_indices(81) != tuple(np.linspace(0, 80, 16).astype(int))


def test_short_videos_show_every_frame_once():
    assert sample_indices(1) == (0,)
    assert sample_indices(5) == (0, 1, 2, 3, 4)


def test_frames_are_images_before_the_text_and_there_is_no_system_message():
    vlm = Scripted([ANSWER])
    UnifiedReward(vlm)(["a red ball"], [video()])
    ((message,),) = vlm.asked
    assert message.role == "user" and message.as_images
    assert message.frames.indices == tuple(range(0, 76, 5))
    assert message.frames.pixels[:, 0, 0, 0].tolist() == list(range(0, 76, 5))
    assert message.text.endswith("[a red ball]")


# ---- reading ------------------------------------------------------------------------------------------------------


def test_the_published_answer_reads_as_its_mean():
    found = score(ANSWER)
    assert found.parts == {"alignment": 2.4036, "physics": 3.0987, "style": 3.3889}
    assert found.value == pytest.approx((2.4036 + 3.0987 + 3.3889) / 3)
    (combined,) = combine({"unified": UnifiedReward(Scripted([ANSWER]))})(["p"], [video()])
    assert combined.value == pytest.approx((found.value - 1) / 4, abs=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "**Alignment Score (1-5):** 2\n**Physics Score (1–5)**: 3\n**Style Score (1-5): 4**",
        "alignment score: 2/5\nPHYSICS SCORE : 3.\nStyle  Score ( 1 - 5 ):4,",
        "First guess: Alignment Score: 5. On reflection:\nAlignment Score (1-5):\n2\nPhysics Score (1-5): 3\nStyle Score (1-5): 4",
    ],
)
def test_dressed_answers_read_alike(text):
    assert read_axes(text) == {"alignment": 2, "physics": 3, "style": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no Alignment Score in the answer ''"),
        ("The video is lovely, 5 out of 5.", "no Alignment Score"),
        (ANSWER.replace("Physics", "Coherence"), "no Physics Score"),  # trap 3: the image prompt's axis is not ours
        (ANSWER.replace("3.0987", "10"), "Physics Score 10 lies outside 1 to 5"),  # trap 2: 10 is not 1
        (ANSWER.replace("3.0987", "0.5"), "Physics Score 0.5 lies outside"),
        (ANSWER.replace("3.0987", "-3"), "Physics Score is not a number"),
        (ANSWER.replace("3.0987", "3,5"), "Physics Score is not a number"),
        (ANSWER.replace("3.0987", "nan"), "Physics Score is not a number"),
        (ANSWER.replace("3.0987", "3.0.9"), "Physics Score is not a number"),
        (ANSWER.replace("3.0987", "x"), "Physics Score is not a number"),
        (
            ANSWER + "\nStyle Score (1-5): none",
            "Style Score is not a number",
        ),  # the last heading counts, even a bad one
        (ANSWER[: ANSWER.index("Style")], "no Style Score"),
    ],
)
def test_an_unreadable_answer_is_no_score(text, message):
    found = score(text)
    assert math.isnan(found.value) and found.parts == {}
    assert message in found.error


def test_a_long_answer_is_quoted_shortened():
    found = score("blah <b>\n" * 5000)
    assert len(found.error) < 300 and "…" in found.error and "\n" not in found.error


def test_no_failure_becomes_a_number():
    vlm = Scripted([ANSWER, Reply("", error="timeout after 60 s"), Reply(ANSWER[:-2], truncated=True), ANSWER])
    scores = UnifiedReward(vlm)(["p"] * 4, [video() for _ in range(4)])
    assert [found.scored for found in scores] == [True, False, False, True]
    assert scores[1].error == "the model gave no answer: timeout after 60 s"
    assert "cut off at the token limit" in scores[2].error


def test_an_unreadable_video_touches_no_other(tmp_path, monkeypatch):
    class Broken(Video):
        def frames(self, indices, *, fps=None):
            raise ValueError("clip.mp4: breaks off at frame 3")

    good = video()
    bad = Broken(good.fps, good.times_s, good.height, good.width, "clip.mp4", good._source)
    scores = UnifiedReward(Scripted([ANSWER]))(["p"] * 3, [good, bad, good])
    assert [found.scored for found in scores] == [True, False, True]
    assert scores[1].error == "the video cannot be read: clip.mp4: breaks off at frame 3"


def test_what_is_written_for_training_reads_back():
    axes = {"alignment": 5.0, "physics": 1.25, "style": 3.0}
    assert read_axes(write_axes(axes)) == axes


def test_many_videos_keep_their_order():
    replies = [ANSWER.replace("2.4036", f"{1 + n / 25}") for n in range(70)]
    scores = UnifiedReward(Scripted(replies))(["p"] * 70, [video(17)] * 70)
    assert [found.parts["alignment"] for found in scores] == [1 + n / 25 for n in range(70)]


# ---- prompt -------------------------------------------------------------------------------------------------------

HOSTILE = ["{", "}", "{prompt}", "{0}", "%s", "[a] 「b」", '"quoted"', "<b>&amp;</b>", "a\nb", "$x \\1", "x" * 50_000]


@pytest.mark.parametrize("prompt", HOSTILE, ids=range(len(HOSTILE)))
def test_no_caption_breaks_the_slot(prompt):
    vlm = Scripted([ANSWER])
    (found,) = UnifiedReward(vlm)([prompt], [video()])
    head, tail = own_prompt().split("{prompt}")
    assert found.scored and vlm.asked[0][0].text == head + prompt + tail


def test_our_wording_names_the_axes_the_reader_wants():
    text = own_prompt()
    assert text.count("{prompt}") == 1
    assert read_axes(text.replace(": x", ": 3")) == {"alignment": 3, "physics": 3, "style": 3}
    assert hashlib.sha256(text.encode()).hexdigest()[:12] != unified.UPSTREAM_SHA256
    assert UnifiedReward(Scripted([])).provenance["prompt"] == (
        f"own wording, sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    )


def test_another_prompt_file_is_refused_unless_asked_for(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Rate it. Text Caption: [{prompt}]")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    with pytest.raises(ValueError, match=f"sha256 {digest}, expected 707411fb9175"):
        UnifiedReward(Scripted([]), prompt_file=path)
    reward = UnifiedReward(Scripted([]), prompt_file=path, allow_other_prompt=True)
    assert reward.provenance["prompt"] == f"other text (prompt.txt), sha256 {digest}, not upstream's 707411fb9175"
    assert fill_prompt(reward.template, "x") == "Rate it. Text Caption: [x]"


def test_the_upstream_text_is_known_by_its_hash(tmp_path, monkeypatch):
    text = "stands for the upstream text [{prompt}]"
    monkeypatch.setattr(unified, "UPSTREAM_SHA256", hashlib.sha256(text.encode()).hexdigest()[:12])
    for content in (text, text + "\n"):  # an editor's last newline is forgiven and not sent
        path = tmp_path / "prompt.txt"
        path.write_text(content)
        reward = UnifiedReward(Scripted([]), prompt_file=path)
        assert reward.provenance["prompt"].startswith("upstream, sha256 ") and reward.template == text


def test_a_prompt_file_without_a_slot_or_unreadable_is_refused(tmp_path):
    path = tmp_path / "prompt.txt"
    with pytest.raises(ValueError, match="cannot be read"):
        UnifiedReward(Scripted([]), prompt_file=path, allow_other_prompt=True)
    with pytest.raises(ValueError, match="cannot be read"):
        UnifiedReward(Scripted([]), prompt_file=tmp_path)
    path.write_text("Rate it.")
    with pytest.raises(ValueError, match=r"no slot \{prompt\}"):
        UnifiedReward(Scripted([]), prompt_file=path, allow_other_prompt=True)


# ---- contract -----------------------------------------------------------------------------------------------------


def test_it_is_a_picklable_reward_with_a_provenance_of_strings():
    vlm = Scripted([ANSWER])
    assert isinstance(vlm, Vlm)
    reward = UnifiedReward(vlm)
    assert isinstance(reward, Reward) and reward.bounds == (1.0, 5.0)
    provenance = pickle.loads(pickle.dumps(reward)).provenance
    assert provenance == reward.provenance and provenance["vlm/model"] == "scripted"
    assert "int(i*N/16)" in provenance["frames"]
    assert all(isinstance(value, str) for value in provenance.values())


def test_prompts_and_videos_must_pair():
    with pytest.raises(ValueError, match="2 prompts and 1 videos"):
        UnifiedReward(Scripted([ANSWER]))(["a", "b"], [video()])


# ---- real backends ------------------------------------------------------------------------------------------------


def test_a_real_model_that_talks_nonsense_gives_no_score(tmp_path):
    from tests.support import tiny_qwen

    folder = tmp_path / "tiny"
    tiny_qwen.model().save_pretrained(folder)
    tiny_qwen.processor().save_pretrained(folder)
    reward = UnifiedReward.load(folder, max_new_tokens=8, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    scores = reward(["a red ball", "{x}"], [Video.open(pixels, fps=16), Video.open(pixels[:3], fps=16, layout="THWC")])
    assert [found.scored for found in scores] == [False, False]
    assert all("the answer" in found.error for found in scores)
    assert any(key.startswith("vlm/") for key in scores[0].provenance)


def test_a_server_gets_the_images_first_the_text_last_and_temperature_zero():
    import json
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    bodies = []

    class OpenAi(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.endswith("/chat/completions"):
                bodies.append(body)
            choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
            body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 30}}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), OpenAi)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        reward = UnifiedReward.load(f"http://127.0.0.1:{server.server_port}", timeout_s=30.0)
        (found,) = reward(["a [red] {ball}"], [video()])
    finally:
        server.shutdown()
        server.server_close()
    assert found.value == pytest.approx(2.9637, abs=1e-4)
    (body,) = bodies
    assert (
        body["model"] == "UnifiedReward" and body["temperature"] == 0
    )  # trap 4: do_sample is no field of this protocol
    assert [message["role"] for message in body["messages"]] == ["user"]
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["image_url"] * 16 + ["text"]
    assert body["messages"][0]["content"][-1]["text"].endswith("[a [red] {ball}]")


@pytest.mark.parametrize(
    ("named", "told"),
    [(["one", "two"], "checkpoint changed during the call"), (["unreachable"], "did not say which checkpoint")],
)
def test_a_checkpoint_that_changed_during_the_call_gives_no_score(named, told):
    class Served(Scripted):
        @property
        def provenance(self):
            return {"served": named[min(len(self.asked), len(named) - 1)]}

    (lost,) = UnifiedReward(Served([ANSWER]))(["a red ball"], [video()])
    assert not lost.scored and told in lost.error
    (kept,) = UnifiedReward(Served(["no numbers"]))(["a red ball"], [video()])
    assert not kept.scored and told not in kept.error, "its own reason stays"


@pytest.mark.parametrize(
    ("declared", "written", "expected"),
    [("1.0-10.0", "4.8", 1 + 3.8 / 9 * 4), ("0 – 100", "50", 3.0), ("1-5", "4/5", 4.0)],
)
def test_a_declared_range_is_read_and_rescaled(declared, written, expected):
    text = "\n".join(f"{axis} Score ({declared}): {written}" for axis in ("Alignment", "Physics", "Style"))
    assert read_axes(text) == pytest.approx(dict.fromkeys(("alignment", "physics", "style"), expected))


@pytest.mark.parametrize("declared", ["out of ten", "5-1", "1-1", ""])
def test_a_range_that_is_none_is_refused_by_name(declared):
    text = "\n".join(f"{axis} Score ({declared}): 3" for axis in ("Alignment", "Physics", "Style"))
    with pytest.raises(ValueError, match=rf"Alignment Score declares the range \({declared}\)"):
        read_axes(text)


def test_headings_are_searched_in_linear_time():
    import time

    started = time.monotonic()
    with pytest.raises(ValueError, match="no Alignment Score"):
        read_axes("alignment score" + " " * 200_000 + "x" + " *" * 50_000)
    assert time.monotonic() - started < 2


def test_a_missing_prompt_file_is_said_once_and_stands_in_the_provenance(tmp_path, capsys, monkeypatch):
    from cac_align.rewards import unified

    monkeypatch.setattr(unified, "_warned", False)
    monkeypatch.setenv("RANK", "1")
    UnifiedReward.load("http://127.0.0.1:9")
    assert capsys.readouterr().err == ""  # the run's first process says it
    monkeypatch.delenv("RANK")
    missing = tmp_path / "point_score_APS_video_generation.py"
    rewards = [UnifiedReward.load("http://127.0.0.1:9", prompt_file=missing) for _ in range(2)]
    assert capsys.readouterr().err.count("asked in our own words") == 1
    assert "own wording (point_score_APS_video_generation.py is missing)" in rewards[0]._prompt_entry


def test_upstreams_prompt_is_found_in_its_python_file(tmp_path, monkeypatch):
    from cac_align.rewards import unified

    file = tmp_path / "upstream.py"
    file.write_text('prompt = ""\nproblem = (\n    "Rate it.\\n"\n    f"Text Caption: [{prompt}]"\n)\n')
    monkeypatch.setattr(unified, "UPSTREAM_SHA256", text_digest("Rate it.\nText Caption: [{prompt}]"))
    assert UnifiedReward(Scripted([]), prompt_file=file).template == "Rate it.\nText Caption: [{prompt}]"
