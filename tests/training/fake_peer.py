"""Speaks as training/peers_worker.py does, without a peer: RecTools is steady, RecBole does as the test wants it to.

RecTools trains 100 targets a second with BCE, 10 with any other loss.
"""

import json
import sys
from pathlib import Path

import numpy as np

peer = sys.argv[1]
fate = Path(__file__).with_name("recbole").read_text() if peer == "recbole" else ""
if fate == "absent":
    print(json.dumps({"error": "it is not installed"}))
    sys.exit()
print(json.dumps({"version": "1.2"}), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if fate == "dies":
        sys.exit("out of memory")
    with np.load(job["data"]) as arrays:
        assert len(arrays["users"]) == len(arrays["items"]) > 0
    targets = 100 if job["loss"] == "bce" else 10
    print(
        json.dumps({"error": "no such loss"} if fate == "refuses" else {"targets": targets, "seconds": 1.0}), flush=True
    )
