"""Plan in the dream: search for actions, score them by dreaming them, act in the real twin."""
