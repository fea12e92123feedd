"""Where images come from: sources, decoding, and the names that the argument `dataset` understands."""
