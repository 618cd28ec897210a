"""Self-evolution: act, learn the world anew from what happened, practise in it, act better."""
