"""How far a dream drifts from the truth: the report behind `kairos fidelity`.

episodes.py        true episodes that no training has seen, and forks of them
predictors.py      what is compared: the dream, and two guesses that know nothing
conv_predictor.py  the third baseline: a network without memory, trained on the spot
objects.py         where the objects are in a picture
traces.py          a predictor rolled out beside the truth, as numbers per frame
statistics.py      estimates with intervals, bootstrapped over episodes
metrics.py         errors by horizon, reward, termination
behaviour.py       counterfactuals, uncertainty, what comes out from behind a roof
measure.py         all of it, for one world
report.py          tables, pictures, and the summary in world.json
cli.py             the command
"""
