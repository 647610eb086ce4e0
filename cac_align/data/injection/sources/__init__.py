"""From video files to clips that an injector can work on: shots, one clock, background, moving objects."""
