"""Where a container's log goes beside its segments."""
