"""Reads `cargo metadata` and fails if a dependency asks for a newer Rust than the one named on the command line."""

import json
import sys


def version(text):
    return tuple(int(part) for part in text.split(".")[:2])


ours = version(sys.argv[1])
metadata = json.load(sys.stdin)
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}

# Only what a user of the crate builds: dependencies of the tests may be as new as they like.
reached, waiting = set(), [metadata["resolve"]["root"]]
while waiting:
    node = nodes[waiting.pop()]
    if node["id"] in reached:
        continue
    reached.add(node["id"])
    for dependency in node["deps"]:
        if any(kind["kind"] != "dev" for kind in dependency["dep_kinds"]):
            waiting.append(dependency["pkg"])

newer = []
for package in (packages[name] for name in reached):
    asked = package.get("rust_version")
    if asked and version(asked) > ours:
        newer.append(f"{package['name']} {package['version']} asks for Rust {asked}")
print(f"{len(reached)} crates looked at")
if newer:
    sys.exit("\n".join(sorted(newer)))
