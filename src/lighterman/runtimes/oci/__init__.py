"""Containers on Linux through an OCI runtime: crun, runc or youki."""
