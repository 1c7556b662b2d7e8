"""python -m dbclone"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; the console script `dbclone` starts here too."""
    from .cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
