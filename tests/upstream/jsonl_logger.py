"""A logging backend for Flow-Factory by dotted path: numbers of every step as one JSON line in $LOG_FILE."""

import json
import os


class JsonlLogger:
    def __init__(self, config):
        self.path = os.environ["LOG_FILE"]

    def log_data(self, data, step=None):
        row = {"step": step}
        for key, value in data.items():
            try:
                row[key] = float(value)
            except (TypeError, ValueError):
                continue  # samples, pictures
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
