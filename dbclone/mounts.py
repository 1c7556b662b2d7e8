"""Which kind of file system a folder is on, as Linux tells it. Pure: given the text of /proc/self/mountinfo (proc(5))."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

#: File systems that other machines may have mounted too: there a file lock of this machine need not exclude the others.
SHARED = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ncpfs",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "lustre",
        "gpfs",
        "beegfs",
        "ocfs2",
        "gfs2",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.s3fs",
    ]
)


def file_system(path: str, mountinfo: str) -> str:
    """Return the type of the file system that holds an absolute `path` without links, such as "ext4"; empty if no mount does."""
    folder, best, found = PurePosixPath(path), -1, ""
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        point = PurePosixPath(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        # The longest mount point that leads there; of several at one place the last covers the others.
        if folder.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), after.split(" ")[0]
    return found
