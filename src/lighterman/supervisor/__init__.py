"""The containers and their lives: `container.py` is the story, `client.py` the set of them."""
