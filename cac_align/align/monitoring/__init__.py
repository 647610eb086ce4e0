"""How a run is doing: evaluation videos, alarms, and the line of progress."""
