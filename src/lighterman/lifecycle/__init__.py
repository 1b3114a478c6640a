"""The deciding core: pure and synchronous. What is now, and what jitter there is, come in as arguments."""
