"""The teacher: writes the answers of a perfect small judge from exact annotations."""
