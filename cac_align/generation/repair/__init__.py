"""Repair: the defect of a video is made anew, and the rest of the video stays as it is."""
