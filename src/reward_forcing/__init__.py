"""Streaming video generation: few-step autoregressive video diffusion models, their training and their judging."""

__version__ = "0.1.0"
