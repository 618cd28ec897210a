"""Networks with imported weights: the same streams and blocks, run with the published windows."""
