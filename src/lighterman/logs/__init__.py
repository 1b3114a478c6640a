"""The path of output: from a container's pipe into log segments, and back from there to whoever reads."""
