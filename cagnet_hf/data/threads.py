"""Several images at once: decoding and encoding free the interpreter, so threads do, without the cost of processes."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int | None = None
) -> Iterator[Result]:
    """`function` of each item, in order; few results wait in memory at a time.

    Args:
        num_threads: How many items at once; default: the number of cores.
    """
    num_threads = num_threads or os.cpu_count() or 1
    with ThreadPoolExecutor(num_threads) as pool:
        pending = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 8 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
