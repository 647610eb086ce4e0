"""The miniature world: short clips of moving things with exact knowledge of what is wrong in them."""
