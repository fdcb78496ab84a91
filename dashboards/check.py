#!/usr/bin/env python3
"""The dashboards' own tests: structure of the Grafana dashboards, and promtool on the rules.

That every metric named here exists in a scrape of the real gateway is tested in tests/tests/metrics.rs.
promtool comes from Debian's prometheus package, unpacked into a cache without installing its service.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent


def dashboard_faults(path):
    """Yields what is wrong with one dashboard."""
    board = json.loads(path.read_text(encoding="utf-8"))
    if board.get("schemaVersion", 0) < 39:
        yield "schemaVersion is below 39 (Grafana 11)"
    if not board.get("uid"):
        yield "has no uid"
    seen, taken = set(), set()
    for panel in board["panels"]:
        name = panel.get("title", "?")
        if panel["id"] in seen:
            yield f"panel {name}: id {panel['id']} is used twice"
        seen.add(panel["id"])
        if not panel.get("description"):
            yield f"panel {name}: no description"
        if not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"panel {name}: no unit"
        if not panel["targets"] or not all(target["expr"].strip() for target in panel["targets"]):
            yield f"panel {name}: a target without a query"
        grid = panel["gridPos"]
        cells = {(x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])}
        if cells & taken or grid["x"] + grid["w"] > 24:
            yield f"panel {name}: overlaps another or leaves the grid"
        taken |= cells


def promtool():
    """The path of promtool, fetched into the cache if the machine has none."""
    found = shutil.which("promtool")
    if found:
        return found
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "referral" / "prometheus"
    tool = cache / "usr" / "bin" / "promtool"
    if not tool.exists():
        root = [] if os.geteuid() == 0 else ["sudo"]
        with tempfile.TemporaryDirectory() as work:
            os.chmod(work, 0o755)
            subprocess.run([*root, "apt-get", "update", "-qq"], check=True)
            subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=work, check=True)
            package = next(pathlib.Path(work).glob("prometheus_*.deb"))
            subprocess.run(["dpkg", "-x", str(package), str(cache)], check=True)
    return str(tool)


def main():
    faults = []
    boards = sorted((HERE / "grafana").glob("*.json"))
    if not boards:
        faults.append("no dashboard found")
    for path in boards:
        faults += [f"{path.name}: {fault}" for fault in dashboard_faults(path)]
    tool = promtool()
    rules = HERE / "prometheus"
    for arguments in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"], ["check", "config", "prometheus.yaml"]):
        done = subprocess.run([tool, *arguments], cwd=rules, capture_output=True, text=True)
        if done.returncode != 0:
            faults.append(f"promtool {' '.join(arguments)}: {done.stdout}{done.stderr}")
    for fault in faults:
        print(f"dashboards: {fault}")
    print(f"dashboards: {len(boards)} checked, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
