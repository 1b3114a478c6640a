"""Where records live: in memory for a private root, in SQLite for one that outlives its engine."""
