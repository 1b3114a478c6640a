"""The hosts that our users have, as small virtual machines: `python -m vm test`, `python -m vm shell`."""
