"""Step-wise generation: plan the next action, generate a short clip of it, verify it, and repair or go on (CollabVR)."""
