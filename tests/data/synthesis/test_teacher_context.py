"""What only the teacher is given."""

from cac_align.core.judgement import Anomaly, Box, Window
from cac_align.core.video import Video
from cac_align.data.records import Record
from cac_align.data.synthesis.plan import plan_questions
from cac_align.data.synthesis.questions import expected_anomalies, question_frames
from cac_align.data.synthesis.teacher_context import teacher_context
from cac_align.miniature.world.world import make_clip

BOX = (Box(100, 100, 200, 200),)


def anomaly(start, end, kind="Object Distortion", frames=(), fps=16):
    return Anomaly(kind, Window(start / fps, end / fps), f"it melts at {start}", "box", dict.fromkeys(frames, BOX))


def record(*anomalies, name="r", frames=49, prompt="a red ball"):
    status = "abnormal" if anomalies else "normal"
    return Record(name, f"{name}.mp4", prompt, 16.0, frames, 64, 64, status, anomalies, "ann")


def test_the_teacher_sees_the_anomaly_enlarged_and_is_told_in_the_frames_own_numbers():
    clip = make_clip(1_420_001, anomalous=True)
    of, video = clip.record("x.mp4"), Video.open(clip.pixels, fps=16)
    scan = plan_questions([of])[of.id][0]
    frames = question_frames(scan, video)
    system, close = teacher_context(scan, frames, video, close_ups=True)
    assert (
        system.role == "system" and f"(sample {of.id}, scan)" in system.text and '"status": "abnormal"' in system.text
    )
    first = min(n for n, t in enumerate(frames.times_s) if t >= expected_anomalies(scan, frames)[0].window.start_s)
    assert f'"Attributed Time Region": "Frame {first}-' in system.text and "COT" not in system.text
    assert close.as_images and len(close.frames) <= 8
    height, width = close.frames.shape[1:3]
    assert 16 <= height <= 64 and 16 <= width <= 64 and height * width < 64 * 64
    (alone,) = teacher_context(scan, frames, video, close_ups=False)
    assert alone.text == system.text and alone.frames is None
