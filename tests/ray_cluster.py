"""A real Ray cluster on loopback, told by lines on stdin what to do; a program of its own for tests/test_cluster.py.

python ray_cluster.py       prints the address of a head without cores, then obeys:
add                         one more node, with one core
add FOLDER                  the same, and it sees an empty folder in the place of FOLDER
add-older                   one more node, with an older coordrl than this one's
kill                        the oldest node and all that runs on it, as a power cut does
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else Ray takes this machine's outer address
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.update(RAY_worker_niceness="0")  # Ray's 15 would wait for whatever else the tests run

from ray.cluster_utils import Cluster

_OLDER = """import importlib.metadata
true = importlib.metadata.version
importlib.metadata.version = lambda name: "0.0.1" if name == "coordrl" else true(name)
"""
CLONE_NEWNS = 0x00020000  # Linux's sched.h: mounts of one's own


def main() -> None:
    options = {"node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000}
    head = {**options, "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = []
    print(cluster.address, flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "add":
            if len(words) > 1 and ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) == 0:
                subprocess.run(["mount", "--make-rprivate", "/"], check=True)
                subprocess.run(["mount", "-t", "tmpfs", "none", words[1]], check=True)
            nodes.append(cluster.add_node(num_cpus=1, **options))
            if len(words) > 1:
                subprocess.run(["umount", "--lazy", words[1]], check=True)
        elif words[0] == "add-older":
            place = tempfile.mkdtemp()
            Path(place, "sitecustomize.py").write_text(_OLDER)
            nodes.append(
                cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": os.pathsep.join([place, *sys.path])}, **options)
            )
        else:
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
