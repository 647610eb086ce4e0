"""The campaign: hostile inputs by the thousand, and runs that are killed, against what the package promises."""
