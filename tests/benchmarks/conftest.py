"""Benchmarks run on two threads, as the targets say, and in pairs: plain and fast in turn, so that
a busy machine slows down both."""

import time

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def against(benchmark):
    """`against(plain, fast, what)` times both in turn and notes how many times faster the second is
    (median of the pairs), counted in seconds of this process's processors. `plain` may do the
    `part`-th part of the work. A `fast` of milliseconds is called `calls` times: waking the threads
    would count most otherwise."""

    def compare(plain, fast, what, *, rounds=5, part=1.0, calls=1):
        spent, results = [], []

        def before():
            began = time.process_time()
            results.append(plain())
            spent.append(part * (time.process_time() - began))
            results[:] = results[-1:]

        took = []

        def timed():
            began = time.process_time()
            for _ in range(calls):
                made = fast()
            took.append((time.process_time() - began) / calls)
            return made

        made = benchmark.pedantic(timed, setup=before, rounds=rounds, warmup_rounds=1)
        ratio = float(np.median(np.array(spent[1:]) / took[1:]))
        seconds = {"plain_s": float(np.median(spent[1:])), "fast_s": float(np.median(took[1:]))}
        benchmark.extra_info.update(what=what, ratio=ratio, **seconds)
        return results[0], made

    return compare


@pytest.fixture
def note_rate(benchmark):
    """`note_rate(what, count)`: how many a second, on the clock, as processors of workers are not
    counted: on a quiet machine only."""

    def note(what, count):
        if benchmark.stats:  # none where benchmarks are switched off
            benchmark.extra_info.update(what=what, rate=count / benchmark.stats.stats.median)

    return note
