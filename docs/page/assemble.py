#!/usr/bin/env python3
"""Puts the page together: docs/page/build calls it with the module and the hash of the sources."""

import base64
import gzip
import html
import pathlib
import subprocess
import sys

MAX = 300 * 1024

here = pathlib.Path(__file__).parent
module, sources = pathlib.Path(sys.argv[1]), sys.argv[2]
# Without a time stamp: the same module gives the same page.
packed = gzip.compress(module.read_bytes(), 9, mtime=0)
recorded = subprocess.run(["cargo", "run", "--quiet", "--features", "step", "--", "step", "echo", "--all", "--state"],
                          check=True, capture_output=True, text=True).stdout
page = (here / "page.html").read_text()
parts = {
    "@SOURCES@": sources,
    "@STYLE@": (here / "page.css").read_text(),
    "@RECORDED@": html.escape(recorded),
    "@SCRIPT@": (here / "page.js").read_text(),
    "@WASM@": base64.b64encode(packed).decode(),
}
for mark, text in parts.items():
    assert page.count(mark) == 1, mark
    page = page.replace(mark, text)
(here / "index.html").write_text(page)
size = len(gzip.compress(page.encode(), 9))
print(f"docs/page/index.html: {len(page):,} bytes, {size:,} compressed")
assert size <= MAX, f"at most {MAX} compressed"
