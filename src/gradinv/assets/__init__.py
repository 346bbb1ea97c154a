"""Data that the package carries: images, metric heads and the embedded prior."""
