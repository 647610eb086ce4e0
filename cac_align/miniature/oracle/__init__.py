"""The oracle: judges a generated clip against its prompt, by pixels and physics alone."""
