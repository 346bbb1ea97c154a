"""R-GAP: a network taken apart from its output to its input, layer by layer."""
