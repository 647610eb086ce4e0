"""Frames that are decoded once for several readers: the same pixels, one decode, and how they are dropped."""

import pickle
import threading

import numpy as np
import pytest

from cac_align.core.decoding import FileFrames
from cac_align.core.judgement import Window
from cac_align.core.shared_frames import decoded_bytes, release_frames, shared_video
from cac_align.core.video import Video
from tests.support.bench_set import clip


@pytest.fixture()
def decodes(monkeypatch):
    """How many frames each read of a file decoded, in order."""
    counts = []
    read = FileFrames.read

    def counted(self, indices):
        if type(self) is FileFrames or len(indices) == len(self._table.stamps):
            counts.append(len(indices))
        return read(self, indices)

    monkeypatch.setattr("cac_align.core.decoding.FileFrames.read", counted)
    return counts


@pytest.fixture()
def path(tmp_path):
    clip(tmp_path / "a.mp4", 120, frames=12)
    return tmp_path / "a.mp4"


def test_many_readers_get_the_frames_of_the_file_from_one_decode(path, decodes):
    plain = Video.open(path, fps=8)
    shared = shared_video(plain)
    assert shared.path == path and shared.content_hash == plain.content_hash and decodes == []
    for read in (
        lambda v: v.sample(4),
        lambda v: v.clip(Window(0.4, 1.0), 8),
        lambda v: v.with_fps(24).sample(12),
        lambda v: v.frames([0, 11]),
    ):
        expected, found = read(plain), read(shared)
        assert np.array_equal(found.pixels, expected.pixels) and found.indices == expected.indices
    assert decodes.count(12) == 1  # the shared one; the plain reads decode fewer frames each
    release_frames(shared)
    shared.frames([3])
    assert decodes.count(12) == 2
    assert decoded_bytes(shared) == 12 * 32 * 32 * 3


def test_threads_decode_once_and_a_copy_by_pickle_is_empty(path, decodes):
    shared = shared_video(Video.open(path, fps=8))
    found = []
    threads = [threading.Thread(target=lambda: found.append(shared.frames([1, 5]).pixels)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and decodes == [12]
    sent = pickle.dumps(shared)
    assert len(sent) < 12 * 32 * 32 * 3  # no pixels in it
    assert np.array_equal(pickle.loads(sent).frames([1, 5]).pixels, found[0])


def test_a_damaged_file_is_read_as_if_it_were_not_shared(path, monkeypatch):
    shared = shared_video(Video.open(path, fps=8))
    read = FileFrames.read
    asked = []

    def damaged(self, indices):
        asked.append(indices)
        if 11 in indices:
            raise ValueError("frame 11 cannot be decoded")
        return read(self, indices)

    monkeypatch.setattr("cac_align.core.decoding.FileFrames.read", damaged)
    assert shared.frames([0, 4]).shape == (2, 32, 32, 3)
    assert asked == [tuple(range(12)), (0, 4)]
    with pytest.raises(ValueError, match="frame 11"):
        shared.frames([11])
    assert asked.count(tuple(range(12))) == 1  # nothing is tried again in vain


def test_frames_in_memory_stay_as_they_are():
    video = Video.open(np.zeros((4, 16, 16, 3), np.uint8), fps=8)
    assert shared_video(video) is video
    release_frames(video)
    assert video.frames([2]).shape == (1, 16, 16, 3)
