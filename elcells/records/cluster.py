"""The same work on a Dask cluster: workers open the network once, take tasks, write files and return results."""

import contextlib
import itertools
import os
from dataclasses import replace

from elcells.files import InputError, reason
from elcells.inference.engines import needed

TASKS_A_WORKER = 4  # under way, so that no worker waits
RETRIES = 3  # of a task whose worker died
CONNECT_SECONDS = 20


class Cluster:
    """Workers of a Dask cluster. client: distributed.Client. threads: of each worker's arithmetic, None for its own."""

    def __init__(self, client, threads=None):
        self.client = client
        self.threads = threads

    def results(self, work, tasks):
        """Yield the ImageResults of tasks (lists of Requests), as they are done.

        Raises InputError where a worker can't read a file that is here, or dies again and again.
        """
        distributed = needed("distributed")
        if self.threads:
            work = replace(work, network=replace(work.network, threads=self.threads))
        left = iter(tasks)
        most = TASKS_A_WORKER * max(1, len(self.client.scheduler_info()["workers"]))
        under_way = distributed.as_completed()
        for task in itertools.islice(left, most):
            under_way.add(self.client.submit(work, task, retries=RETRIES, pure=False))
        for future in under_way:
            try:
                results = future.result()
            except distributed.KilledWorker as error:
                raise InputError(f"the cluster's workers died again and again ({reason(error)})") from None
            for result in results:
                check_readable(result)
                yield result
            future.release()
            for task in itertools.islice(left, 1):
                under_way.add(self.client.submit(work, task, retries=RETRIES, pure=False))

    def map(self, function, items):
        """Results of a function, in order."""
        return self.client.gather(self.client.map(function, list(items), pure=False))


def check_readable(result):
    """Raise InputError where a worker did not find a file that this process sees."""
    if "no such file" in result.error and os.path.exists(result.request.path):
        raise InputError(
            f"{result.request.path}: a worker of the cluster can't see it; all workers need the same file system"
        )


@contextlib.contextmanager
def cluster(count, address=None):
    """The context with a Cluster: that at an address, or `count` processes of this machine."""
    distributed = needed("distributed")
    with contextlib.ExitStack() as stack:
        threads = None
        if address is None:
            threads = max(1, (os.cpu_count() or 1) // count)
            local = distributed.LocalCluster(
                n_workers=count, threads_per_worker=1, dashboard_address=None, memory_limit=0, silence_logs=50
            )
            address = stack.enter_context(local)
        try:
            client = stack.enter_context(distributed.Client(address, timeout=CONNECT_SECONDS))
        except (OSError, ValueError) as error:
            raise InputError(f"--dask {address}: no cluster there ({reason(error)})") from None
        yield Cluster(client, threads)
