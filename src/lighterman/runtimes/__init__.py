"""The platforms: each implements the Protocols of `base` over one way of running containers."""
