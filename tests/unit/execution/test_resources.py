"""The gate never lets more through than there is, and lets a big action run alone."""

from __future__ import annotations

import threading

import pytest

from jarvis_rules.core.action import Resources
from jarvis_rules.execution.resources import Capacity, ResourceGate

CAPACITY = Capacity(cpus=2, memory_mib=1000, gpus=1)


@pytest.mark.parametrize(
    ("wanted", "together"),
    [
        (Resources(cpus=1, memory_mib=10), 2),
        (Resources(cpus=2, memory_mib=10), 1),
        (Resources(cpus=1, memory_mib=600), 1),
        (Resources(cpus=1, memory_mib=10, gpus=1), 1),
        (Resources(cpus=9, memory_mib=9000, gpus=9), 1),
    ],
    ids=["a core each", "all cores", "memory", "the GPU", "more than there is"],
)
def test_no_more_run_together_than_fit(wanted, together):
    gate, lock = ResourceGate(CAPACITY), threading.Lock()
    running, most = 0, 0
    full = threading.Barrier(together)

    def act():
        nonlocal running, most
        with gate.hold(wanted):
            with lock:
                running += 1
                most = max(most, running)
            # As many as may run together do meet here; one more would be counted.
            full.wait(timeout=20)
            with lock:
                running -= 1

    threads = [threading.Thread(target=act) for _ in range(4 * together)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert (most, running) == (together, 0)


def test_a_failed_action_gives_its_share_back():
    gate = ResourceGate(CAPACITY)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), gate.hold(Resources(cpus=2)):
            _ = 1 // 0


def test_this_machine_has_something():
    found = Capacity.of_this_machine()
    assert found.cpus >= 1
    assert found.memory_mib > 0
