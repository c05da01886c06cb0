"""The same models under TorchServe: a baseline for Triton, and for teams that still run TorchServe.

Upstream, pytorch/serve, was archived in August 2025: it gets no more fixes, not even for security.
"""
