"""The same models under TorchServe: a yardstick for Triton, and for teams that still run it.

Upstream, pytorch/serve, was archived in August 2025: it gets no more fixes, those of security included.
"""
