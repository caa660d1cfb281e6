"""These tests run by `./dev peers`, in an environment of their own, and not with the others."""

import pathlib


def pytest_ignore_collect(collection_path, config):
    """Leaves this folder out, unless its own configuration is in use."""
    here = pathlib.Path(__file__).parent
    if config.inipath is None or config.inipath.parent != here:
        return True
    return None
