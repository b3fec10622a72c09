"""`python -m benchmarks [NAME ...]`: run the named benchmarks, or all but the long ones, one after the other.

Long ones run only if they are named: `data_plane` (a window of a million episodes), `learning` (five base policies,
three trainings of each by either judge, and their evaluations) and `loop` (the whole demo).
"""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import benchmarks

SHARED = ("server", "timing")
LONG = {"data_plane": [[]], "learning": [["--judge", "outcome"], ["--judge", "ruler"]], "loop": [[]]}
"""With the arguments of each of its runs."""


def main(names: list[str]) -> int:
    known = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    known = [name for name in known if not name.startswith("_") and name not in SHARED]
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"there is no benchmark {', '.join(unknown)}; choose from {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = names or [name for name in known if name not in LONG]
    # Each in a process of its own: what one leaves in memory or caches is no part of the next one's figures.
    runs = [(name, given) for name in chosen for given in LONG.get(name, [[]])]
    codes = [subprocess.call([sys.executable, "-m", f"benchmarks.{name}", *given]) for name, given in runs]
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
