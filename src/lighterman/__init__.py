"""Lighterman: a container engine that you can import."""
