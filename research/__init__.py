"""What made the weights and the tables of the miniature. No verb imports it."""
