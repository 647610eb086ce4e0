"""Annotated videos without annotators: a defect is put into a good clip, beside a twin that went
through the same operation without it.

videos → ``sources`` (shots, one clock, moving objects) → ``injectors`` → two twins → ``truth``
(their difference) → lossless clips, records, audit. ``registry`` lists the injectors.

How to add an injector, in 12 steps:
 1. Write ``def name(source, rng, severity) -> Edit`` in a file of ``injectors`` (its family's).
 2. ``source`` is a ``SourceClip``: pixels (T, H, W, 3) uint8, fps, moving objects with masks (T, H,
    W) and, where it is known, the background behind them. Never change its arrays.
 3. Choose the object or the part with ``rng`` (numpy); draw nothing from elsewhere: the same seed
    must give the same bytes. Regions are objects or parts of them, never random rectangles.
 4. Raise ``NotApplicable("…")`` where the source has not what the injector needs; say what is missing.
 5. ``severity`` in (0, 1] scales the one number that makes the defect stronger.
 6. Make the anomalous and the sham pixels by *one* function with a strength; the sham gets 0: the
    same cut, fill, blend and resampling, on the same frames.
 7. ``Edit.subject``: where the anomalous thing is, on the frames on which it is anomalous.
 8. ``Edit.vacated``: places that changed only because something left them and that look ordinary now.
 9. ``Edit.absence``: the defect is that the subject is missing; ``subject`` is then where the sham
    shows it. Window and boxes are never yours to say: ``truth`` measures them.
10. ``reason`` and ``region`` are short English; an absence says "suddenly disappears" or "appears".
11. Add ``Injector("name", tier, name, requires=("module",))`` to the file's ``…_INJECTORS``, and the
    file to ``registry``.
12. ``tests/data/injection/test_injectors.py`` runs every injector of the tier "core" by itself; give
    another one a source there.
"""
