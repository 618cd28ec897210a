"""The ground truth: real environments with the same face as the dream."""
