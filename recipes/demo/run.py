"""`make demo`: build the quick recipe, judge its drafter, say where the report is.

The last line on stdout is one JSON object; `demo_s` counts everything but the installation. Run
again, the build is reused and only the judging is done anew. Exits with the status of the part that failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = Path("artifacts/demo")


def factory(*arguments: str) -> None:
    """One command of the command line, shown; its failure is the demo's."""
    sys.stdout.write(f"\n$ factory {' '.join(arguments)}\n")
    sys.stdout.flush()
    status = subprocess.run([sys.executable, "-m", "factory.cli", *arguments], cwd=ROOT, check=False).returncode
    if status != 0:
        sys.exit(status)


def main() -> None:
    """Build, judge, report."""
    began_s = time.monotonic()
    factory("build", "recipes/demo/quick.yaml", "--out", str(OUT))
    factory("eval", str(OUT / "quick"), "--plan", "demo", "--out", str(OUT))
    verdict = json.loads((ROOT / OUT / "results.json").read_text(encoding="utf-8"))["verdict"]
    sys.stdout.write(f"\nopen {ROOT / OUT / 'report.html'} in a browser\n")
    facts = {"demo_s": round(time.monotonic() - began_s, 1), **verdict, "report": str(OUT / "report.html")}
    sys.stdout.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
