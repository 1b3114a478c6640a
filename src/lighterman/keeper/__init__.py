"""The keeper: the small process that outlives the engine, spawns the runtimes and reaps everything."""
