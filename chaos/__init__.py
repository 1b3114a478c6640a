"""Chaos: random verbs on many containers, everything killed at random instants, and then compared with the truth."""
