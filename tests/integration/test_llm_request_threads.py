"""The first requests of a language model come on several threads at once."""

from __future__ import annotations

import subprocess
import sys

FIRST_REQUESTS = """
import threading, time
import msgspec._utils as types
from dataflower.llm.request import parse

resolve = types._forward_ref

def slowly(text):
    time.sleep(0.003)
    return resolve(text)

types._forward_ref = slowly  # what msgspec does when it meets a type for the first time
given = {"prompt": "x", "temperature": 0.5, "max_tokens": 3, "seed": 1, "stop": "a", "top_p": 0.5}
answers = []
threads = [threading.Thread(target=lambda: answers.append(parse(given).max_tokens)) for _ in range(40)]
for thread in threads:
    thread.start()
    time.sleep(0.005)
for thread in threads:
    thread.join()
print(answers == [3] * len(threads))
"""


def test_the_first_requests_of_all_threads_are_read() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_REQUESTS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr[-500:]
