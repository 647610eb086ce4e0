"""Step-wise generation: plan the next action, generate a short clip, verify it, and repair it or go on."""
