"""Reinforcement learning in imagination: practise in a dream, be examined in reality."""
