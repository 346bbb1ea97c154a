"""Rules of the R-operator: for every operation its forward, backward and both tangent passes."""
