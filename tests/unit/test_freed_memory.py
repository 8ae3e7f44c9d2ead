from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import resource
import numpy as np
from prismatic.vla.datasets.training_data import keep_freed_memory

def num_page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        images = [np.zeros(150_000, np.uint8) + 1 for _ in range(64)]  # 9.6 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
num_page_faults()
print(num_page_faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="an option of glibc")
def test_freed_images_are_not_given_back_to_the_system() -> None:
    found = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 5_000  # 48,000 pages are written
