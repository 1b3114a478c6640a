"""Run by its path, `python -I -S -E .../keeper/__main__.py`: a package of its own name, without `lighterman`."""

import sys

if __name__ == "__main__":
    package = type(sys)("lighterman_keeper")
    package.__path__ = [__file__.rpartition("/")[0]]
    sys.modules["lighterman_keeper"] = package
    from lighterman_keeper.boot import main  # type: ignore[import-not-found]

    main(sys.argv[1:])
