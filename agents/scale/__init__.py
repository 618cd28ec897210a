"""Recording and dreaming by Ray actors, on one machine or many (extra "ray").

cluster.py      a cluster is joined, actors are hired, those that die are replaced
collectors.py   actors that record a real environment: `kairos collect --cluster`
dreamers.py     actors that hold the world and roll a policy out in its dream
learner.py      the one that learns from their rollouts: `kairos imagine --dreamers`
"""
