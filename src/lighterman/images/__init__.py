"""Images: what a container's root is made of, and the defaults that come with it."""
