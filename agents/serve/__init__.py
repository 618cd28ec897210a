"""A world's policy behind HTTP: `kairos serve WORLD`.

wire.py       bodies: JSON or msgpack with arrays, never pickle
request.py    what a client may ask, checked before anything is computed
policies.py   what answers: an imported network, or the action stream of one of our worlds
batching.py   one worker that answers many clients at once
server.py     HTTP
client.py     the other side
bridge.py     stands in for the clients of the published evaluation harness
"""
