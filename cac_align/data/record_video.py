"""The video of a record, and whether its time stamps fit the record's clock."""

from __future__ import annotations

from pathlib import Path

from cac_align.core.video import Video
from cac_align.data.records import Record

VARIABLE_RATE = "variable frame rate: re-encode at a constant rate"


def frames_off_clock(video: Video, fps: float) -> float:
    """The largest distance, in frames, of a time stamp from the even clock index / fps that judges
    use.
    """
    return max(abs(time_s * fps - index) for index, time_s in enumerate(video.times_s))


def has_variable_rate(video: Video, fps: float) -> bool:
    """Whether the time stamps are more than half a frame off both even clocks: ``fps``, and the
    video's own mean rate.

    ``video`` must be on the container's clock (opened without fps).
    """
    if frames_off_clock(video, fps) <= 0.5:
        return False
    return frames_off_clock(video, (len(video) - 1) / video.times_s[-1]) > 0.5


def open_record_video(record: Record, root: Path, *, clocked: bool = True) -> Video:
    """The record's video, with time stamps within half a frame of the record's clock.

    clocked: False skips the check of the frame rate, where only pixels matter. Raises
    ``ValueError`` when it cannot be read, differs from the record, or has a variable frame rate.
    """
    path = root / record.video
    if not path.is_file():
        raise ValueError(f"record {record.id}: video missing: expected {path}")
    video = Video.open(path)
    if (len(video), video.height, video.width) != (record.num_frames, record.height, record.width):
        raise ValueError(
            f"record {record.id}: states {record.num_frames} frames of {record.width}x{record.height}, {path.name} has "
            f"{len(video)} of {video.width}x{video.height}; correct the record or the file"
        )
    if clocked and has_variable_rate(video, record.fps):
        raise ValueError(f"record {record.id}: {path.name}: {VARIABLE_RATE}")
    close = abs(video.fps - record.fps) <= 0.01 * record.fps and frames_off_clock(video, record.fps) <= 0.5
    return video if close else video.with_fps(record.fps)
