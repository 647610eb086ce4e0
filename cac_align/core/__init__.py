"""Values: video, judgement, answer, IoU, prompts, weights. Nothing here needs more than numpy to
import.
"""
