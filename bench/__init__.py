"""The benchmark of serving, `./run bench serving`: the service beside what it stands on, and beside others.

It drives both ends, a bundle of training's and the service, so it belongs to neither package; nothing imports it.
"""
