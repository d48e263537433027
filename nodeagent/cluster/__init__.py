"""Where pods come from, and where their status goes."""
