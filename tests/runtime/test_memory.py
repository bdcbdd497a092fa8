"""What is kept, seen from outside: a heap that does not go up and down with each body."""

import subprocess
import sys

PROGRAM = """\
import gc, re, sys
from rolemesh.runtime.memory import keep_freed_memory, set_aside_what_is_there
if sys.argv[1] == "keeps":
    keep_freed_memory()
    set_aside_what_is_there()
def faults():
    return int(open("/proc/self/stat").read().rpartition(")")[2].split()[7])
def bodies():
    for _ in range(200):
        held = [bytes(65_000) for _ in range(8)]
bodies()
before = faults()
bodies()
print(faults() - before, gc.get_freeze_count() > 0)
"""


def run(how: str) -> tuple[int, bool]:
    command = (sys.executable, "-c", PROGRAM, how)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    faults, frozen = done.stdout.split()
    return int(faults), frozen == "True"


def test_memory_of_bodies_is_not_given_back_and_taken_again() -> None:
    (kept, frozen), (given_back, thawed) = run("keeps"), run("gives back")
    assert kept < 100 < given_back
    assert (frozen, thawed) == (True, False)
