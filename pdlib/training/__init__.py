"""How networks are trained, and their weights kept."""
