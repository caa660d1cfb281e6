"""What has been measured of a long command, so that one that was interrupted goes on."""

import json
import re
import time


class Kept:
    """Results by name, in files of a folder; None keeps nothing."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, name, measure):
        """What was measured under this name, or is now."""
        path = self.folder and self.folder / f"{re.sub('[^a-z0-9.]+', '-', name.lower())}.json"
        if path and path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        start = time.perf_counter()
        found = measure()
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found), encoding="utf-8")
        return found
