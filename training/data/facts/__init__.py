"""Facts: numbers about every row, each from a maker of its own. No fact holds text."""
