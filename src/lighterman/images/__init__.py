"""Images: what a container's root is made of, and the defaults that come with it."""

from lighterman.images.image import Image, ImageConfig
from lighterman.images.store import ImageStore, directory_image

__all__ = ["Image", "ImageConfig", "ImageStore", "directory_image"]
