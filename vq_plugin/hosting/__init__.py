"""What hosts share. A new host is a room of its own that uses this one, and no other host's.

- :mod:`vq_plugin.hosting.plan`: which scheme a float layer gets.
- :mod:`vq_plugin.hosting.conversion`: codebook layers, fitted once and shared as weights are.
- :mod:`vq_plugin.hosting.statistics`: what calibration gathers between a host's two calls.
- :mod:`vq_plugin.hosting.follower`: codebooks that follow a weight while it trains.
- :mod:`vq_plugin.hosting.commitment`: the loss that keeps the weight by them.
- :mod:`vq_plugin.hosting.check`: an error for everything that a host left undone.

A host that holds weights but no layers, such as the nodes of an exported graph, gives an empty
float layer its weight, and takes codes, codebooks and bias off the codebook layer.
"""
