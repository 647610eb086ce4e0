"""What can be done to the letters of an upright patch of text: break, mirror, reorder.

median patch → ``Ink`` (where the letters are) → an edit: for every pixel the pixel whose ink it shows
→ ``drawn(patch, edit)``

Only the ink is moved: what a pixel has above its ground. So a plain ground gets no seams, and the edit
that moves nothing gives the patch back, which is what a sham needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from cac_align.data.injection.injector import NotApplicable
from cac_align.data.injection.sources.masks import dilated, grey

EMPTY = -1
"""In an edit: this pixel shows no ink."""
_FAINT = 25.0  # grey levels between ink and ground below which text is too faint
_CHANGED, _ALIKE = 0.5, 0.75  # share of a letter's ink that must change; correlation at which two pictures are one


@dataclass(frozen=True, eq=False)
class Ink:
    """Where the letters of a line are. light: ink above ground in grey levels (h, w), 0 off the ink.
    mask: bool (h, w). cells: first and last column (exclusive) of every letter.
    """

    light: np.ndarray
    mask: np.ndarray
    cells: tuple[tuple[int, int], ...]

    @cached_property
    def untouched(self) -> np.ndarray:
        """The edit that moves nothing, int (h, w)."""
        return np.arange(self.light.size).reshape(self.light.shape)

    def shown(self, edit: np.ndarray) -> np.ndarray:
        """The light of the ink after an edit, (h, w)."""
        return np.where(edit == EMPTY, 0.0, self.light.ravel()[np.maximum(edit, 0)])


def ink_of(patch: np.ndarray) -> Ink:
    """The letters of an upright patch (h, w, 3) of one line. Raises ``NotApplicable`` where letters and
    ground cannot be told apart.
    """
    light = grey(patch)
    height = len(light)
    above = light > _otsu(light)
    rim = np.concatenate([above[:2].ravel(), above[-2:].ravel(), above[:, :1].ravel(), above[:, -1:].ravel()])
    letters = ~above if rim.mean() > 0.5 else above
    share = float(letters.mean())
    if not 0.03 < share < 0.6:
        raise NotApplicable("the letters do not stand out from their ground")
    contrast = abs(float(light[letters].mean()) - float(light[~letters].mean()))
    if contrast < _FAINT:
        raise NotApplicable(f"the text is too faint: {contrast:.0f} grey levels")
    mask = dilated(letters, max(round(height / 20), 1))
    return Ink(np.where(mask, light - ground_of(patch, mask).mean(-1), 0.0), mask, _cells(letters, height))


def _otsu(light: np.ndarray) -> float:
    counts, edges = np.histogram(light, 64)
    centres = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts)[:-1], counts.sum()
    sums = np.cumsum(counts * centres)
    mean_below, mean_above = sums[:-1] / np.maximum(below, 1), (sums[-1] - sums[:-1]) / np.maximum(total - below, 1)
    return float(edges[1:-1][np.argmax(below * (total - below) * (mean_above - mean_below) ** 2)])


def ground_of(patch: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The patch (h, w, 3) with its ink replaced by what surrounds it, float32."""
    from scipy import ndimage

    known = (~mask).astype(np.float32)
    ground = patch.astype(np.float32)
    for sigma in (patch.shape[0] / 2, patch.shape[0] / 8):  # the wide one fills what the narrow one cannot reach
        weight = ndimage.gaussian_filter(known, sigma)
        smooth = ndimage.gaussian_filter(patch * known[..., None], (sigma, sigma, 0))
        reached = mask & (weight > 0.02)
        ground[reached] = smooth[reached] / weight[reached][:, None]
    return ground


def drawn(patch: np.ndarray, ink: Ink, edit: np.ndarray) -> np.ndarray:
    """A patch (h, w, 3) with its ink moved as an edit says, float32. ``ink.untouched`` gives it back."""
    ground = ground_of(patch, ink.mask)
    above = np.where(ink.mask[..., None], patch - ground, 0.0).reshape(-1, patch.shape[-1])
    moved = np.where((edit == EMPTY)[..., None], 0.0, above[np.maximum(edit, 0)])
    return (ground + moved).astype(np.float32)


def _cells(letters: np.ndarray, height: int) -> tuple[tuple[int, int], ...]:
    """Columns of the letters: runs of columns with ink; a run much wider than high is cut where its ink
    is thinnest.
    """
    profile = letters.sum(0)
    columns = np.flatnonzero(profile >= max(height / 40, 1))
    if len(columns) == 0:
        return ()
    runs = [(int(run[0]), int(run[-1]) + 1) for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)]
    cells: list[tuple[int, int]] = []
    while runs:
        left, right = runs.pop(0)
        if right - left > 1.1 * height:
            inner = profile[left + height // 3 : right - height // 3]
            cut = left + height // 3 + int(inner.argmin())
            runs[:0] = [(left, cut), (cut, right)]
        elif right - left >= max(0.06 * height, 2):
            cells.append((left, right))
    return tuple(cells)


# ---- edits --------------------------------------------------------------------------------------------------------


def broken(ink: Ink, rng: np.random.Generator, share: float) -> np.ndarray:
    """An edit that breaks a share of the letters: each is cut into pieces that change places, or is
    turned over, or its upper part slips sideways.

    Letters that look the same afterwards are left. Raises ``NotApplicable`` where fewer than two or
    fewer than two fifths are broken.
    """
    edit = ink.untouched.copy()
    inked = np.flatnonzero(ink.mask.any(1))
    rows = slice(int(inked[0]), int(inked[-1]) + 1)
    wanted = max(round(share * len(ink.cells)), 2)
    done = 0
    for index in rng.permutation(len(ink.cells)):
        if done == wanted:
            break
        left, right = ink.cells[index]
        own = ink.untouched[rows, left:right]
        for kind in rng.permutation(4):
            piece = _ways(own, int(kind), rng)
            before, after = ink.light[rows, left:right], ink.shown(piece)
            if np.abs(after - before).sum() >= _CHANGED * np.abs(before).sum():
                edit[rows, left:right] = piece
                done += 1
                break
    if done < max(2, 0.4 * len(ink.cells)):
        raise NotApplicable(f"only {done} of {len(ink.cells)} letters can be broken so that it shows")
    return edit


def _ways(own: np.ndarray, kind: int, rng: np.random.Generator) -> np.ndarray:
    """One letter's part of an edit, rearranged in one of four ways."""
    height, width = own.shape
    if kind == 0:  # three bands change places
        bands = np.array_split(np.arange(height), 3)
        order = [[1, 2, 0], [2, 0, 1], [1, 0, 2], [0, 2, 1]][int(rng.integers(4))]
        return own[np.concatenate([bands[band] for band in order])]
    if kind == 1:  # the halves change places and one of them is upside down
        half = width // 2
        return np.concatenate([own[:, half:], own[::-1, :half]], axis=1)
    if kind == 2:  # turned by half a turn
        return own[::-1, ::-1]
    slip = max(round(0.4 * width), 1) * (1 if rng.random() < 0.5 else -1)
    cut = int(rng.integers(height // 3, max(2 * height // 3, height // 3 + 1)))
    return np.concatenate([np.roll(own[:cut], slip, axis=1), own[cut:]])


def mirrored(ink: Ink) -> np.ndarray:
    """The edit that mirrors the whole line. Raises ``NotApplicable`` where it looks the same mirrored."""
    if len(ink.cells) < 2:
        raise NotApplicable("the line has fewer than two letters")
    left, right = ink.cells[0][0], ink.cells[-1][1]
    margin = min(left, ink.light.shape[1] - right, max(ink.light.shape[0] // 10, 1))
    left, right = left - margin, right + margin
    edit = ink.untouched.copy()
    edit[:, left:right] = edit[:, left:right][:, ::-1]
    alike = likeness(ink.light, ink.shown(edit))
    if alike > _ALIKE:
        raise NotApplicable(f"the line looks the same when it is mirrored: a correlation of {alike:.2f}")
    return edit


def reordered(ink: Ink, rng: np.random.Generator, unlike: list[np.ndarray]) -> np.ndarray:
    """An edit that puts the line's letters into another order; the gaps between them stay. It looks
    unlike every edit of ``unlike``.

    Raises ``NotApplicable`` where no order does.
    """
    if len(ink.cells) < 3:
        raise NotApplicable("the line has fewer than three letters")
    gaps = [after[0] - before[1] for before, after in pairwise(ink.cells)]
    for _ in range(24):
        edit = np.full_like(ink.untouched, EMPTY)
        at = ink.cells[0][0]
        for position, index in enumerate(rng.permutation(len(ink.cells))):
            left, right = ink.cells[index]
            edit[:, at : at + right - left] = ink.untouched[:, left:right]
            at += right - left + (gaps[position] if position < len(gaps) else 0)
        if all(likeness(ink.shown(edit), ink.shown(other)) <= _ALIKE for other in unlike):
            return edit
    raise NotApplicable("the line looks much the same in every order of its letters")


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two pictures (h, w), the largest over small shifts: a change of spacing is none
    of letters.
    """
    from scipy import ndimage

    reach = max(one.shape[0] // 4, 1)
    blurred = [ndimage.gaussian_filter(np.asarray(image, np.float32), one.shape[0] / 30) for image in (one, other)]
    norm = float(np.sqrt((blurred[0] ** 2).sum() * (blurred[1] ** 2).sum()))
    if norm < 1e-6:
        return 1.0
    padded = np.pad(blurred[1], ((0, 0), (reach, reach)))
    width = one.shape[1]
    return max(float((blurred[0] * padded[:, k : k + width]).sum()) for k in range(2 * reach + 1)) / norm
