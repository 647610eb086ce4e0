"""What keeps any run alive: whole files, a device, checkpoints, learning-rate schedules, logs, the
status of every rank.
"""
