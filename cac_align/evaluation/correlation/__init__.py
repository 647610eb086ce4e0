"""How well a reward agrees with published human scores."""
