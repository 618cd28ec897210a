"""Theorem 1: what a memory of limited reach must lose, against what trained models lose."""
