"""Whether what lies in the cache can only have been put there by this user: what is loaded from it runs as him."""

import os
import stat
from pathlib import Path


def danger_in(*places: Path) -> str | None:
    """Why others may have written one of these files and folders; None where they cannot."""
    for place in places:
        found = os.stat(place, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            return f"{place} is a link"
        if found.st_uid != os.geteuid():
            return f"{place} belongs to another user (uid {found.st_uid})"
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{place} can be written by others (chmod go-w it, if all in it is yours)"
    return None
