"""How CaC is made: single frames, then clips, then two-turn GRPO (Sec. 3.2)."""
