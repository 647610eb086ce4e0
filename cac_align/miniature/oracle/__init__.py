"""The oracle: judges a generated clip against the scene that its prompt asks for, by pixels and physics alone."""
