"""The engine: containers with names, images, logs and results, in this process. It alone picks concrete classes."""

from lighterman.engine.engine import Engine

__all__ = ["Engine"]
