"""The benchmark: Lighterman against raw runtimes, docker and podman, interleaved in one run. See `make bench`."""
