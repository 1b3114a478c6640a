"""The seccomp profile: which calls are allowed, resolved for one container, and its filter compiled once."""
