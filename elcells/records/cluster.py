"""The same work on a Dask cluster (doc/cluster.md): workers open the network once, take tasks, and write files."""

import asyncio
import contextlib
import ctypes
import functools
import logging
import os
import pickle
import signal
import sys
import threading
import warnings
from collections import deque
from dataclasses import replace
from multiprocessing import resource_tracker

from elcells.data.finding import file_of
from elcells.files import InputError, needed, reason
from elcells.inference.networks import open_network
from elcells.inference.onnx_files import cores, is_onnx

AHEAD = 4  # tasks for each thread of the workers, so that none waits
COUNT_AGAIN = 32  # tasks after which the workers are counted again: more may have come
CONNECT_SECONDS = 15
SHARED = "all workers need the same file system (doc/cluster.md)"
AGAIN = "the same command again goes on where it stopped"
ALONE = threading.Lock()  # of a worker's threads: a checkpoint's Engine takes one batch at a time


class Cluster:
    """Workers of a Dask cluster. client: distributed.Client."""

    def __init__(self, client):
        self.client = client

    def results(self, work, tasks):
        """Yield the ImageResults of tasks (lists of Requests), in order.

        Raises InputError where a worker can't see what this process sees, fails, or dies again and again.
        """
        folder = os.path.abspath(work.folder) if work.folder else ""
        network = replace(work.network, path=os.path.abspath(work.network.path))
        judge = functools.partial(judge_there, replace(work, network=network, folder=folder), network.sha256())
        tasks = deque(tasks)
        there = ([replace(request, name=absolute(request.name)) for request in task] for task in list(tasks))
        for results in self.map(judge, there, lambda task: [(request.path, request.bytes) for request in task]):
            for result, request in zip(results, tasks.popleft()):
                yield as_given(result, request)

    def map(self, function, items, files_of_item=lambda name: [(str(file_of(name)[0]), None)]):
        """Yield the results of a function for items, in order.

        files_of_item(item): the files that it reads, pairs of a path and its size in bytes or None.
        """
        waiting = deque()
        for number, item in enumerate(items):
            if number % COUNT_AGAIN == 0:
                most = AHEAD * max(1, sum(self.client.nthreads().values()))
            files = files_of_item(item)
            packed = pickle.dumps((there, (function, item, files)))
            waiting.append((self.client.submit(unpacker(), packed, pure=False), files))
            if len(waiting) > most:
                yield taken(*waiting.popleft())
        while waiting:
            yield taken(*waiting.popleft())


def absolute(name):
    """The absolute name of an image; unlike that of os.path.abspath it keeps what links and .. mean."""
    return os.path.join(os.getcwd(), name)


def as_given(result, request):
    """An ImageResult with the name that the user gave, where the worker had the absolute one."""
    name = result.request.name
    cells = result.cells
    if result.module is None:
        cells = tuple(
            replace(cell, filename=request.name, error=cell.error.replace(name, request.name)) for cell in cells
        )
    return replace(result, request=request, error=result.error.replace(name, request.name), cells=cells)


def taken(future, files):
    """The result of a Future; raises InputError where there is none, or where its worker did not see the files."""
    distributed = needed("distributed")
    try:
        result, unseen = pickle.loads(future.result())
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(
            f"a worker of the cluster has no package {error.name}; start the workers with the project's folder in "
            "PYTHONPATH and with the same packages"
        ) from None
    except distributed.KilledWorker:
        raise InputError(
            f"{files[0][0]}: a worker of the cluster died each time it came to this image or the "
            f"{len(files) - 1} after it; see its log, or leave them out"
        ) from None
    except distributed.client.FutureCancelledError:
        raise InputError(f"the cluster's scheduler is gone; {AGAIN}") from None
    except OSError as error:
        if error.filename is not None or error.errno is not None:  # something can't be written
            raise
        raise InputError(f"the cluster can't be reached ({reason(error)}); {AGAIN}") from None
    except Exception as error:  # of whatever kind, it happened on a worker
        raise InputError(f"a worker of the cluster failed: {type(error).__name__} ({reason(error)})") from None
    for path, size in unseen:
        if sees(path, size):
            raise InputError(f"{path}: a worker of the cluster can't read it, or sees another file; {SHARED}")
    return result


# ---------------------------------------------------------------- on a worker


def unpacker():
    """A function that takes pickled (function, arguments) and pickles the result.

    It travels by value, as functions in functions do: workers without this project then say so, and the scheduler needs
    no part of it.
    """

    def unpacked(packed):
        import pickle

        function, arguments = pickle.loads(packed)
        return pickle.dumps(function(*arguments))

    return unpacked


def there(function, item, files):
    """function(item), and those of the files that this process does not see."""
    keep_freed_memory()
    unseen = [(path, size) for path, size in files if not sees(path, size)]
    return function(item), unseen


@functools.cache
def keep_freed_memory():
    """Let glibc keep freed memory as it does by itself: Dask makes workers give it back, a third of a module's time."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system
        mallopt = ctypes.CDLL(None).mallopt
        m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
        mallopt(m_mmap_threshold, 2**25)
        mallopt(m_trim_threshold, 2**26)


def sees(path, size):
    """Whether this process can read a file, which has so many bytes (None: any number)."""
    try:
        return os.access(path, os.R_OK) and size in (None, os.stat(path).st_size)
    except OSError:
        return False


def judge_there(work, sha256, requests):
    """The ImageResults (list) of Requests, from one of several threads that share the network."""
    if work.folder and not os.path.isdir(work.folder):
        raise InputError(f"{work.folder}: a worker of the cluster can't see this folder; {SHARED}")
    with ALONE:
        network = usable(work.network, sha256)
        size = open_network(network).image_size
    work = replace(work, network=network)
    prepared = [work.prepared(request, size) for request in requests]
    with ALONE:
        return work.finish(prepared)


@functools.lru_cache(maxsize=2)
def usable(network, sha256):
    """A Network for this worker's number of threads; raises InputError where it is not the file that was meant."""
    try:
        same = network.sha256() == sha256
    except OSError as error:
        raise InputError(
            f"{network.path}: a worker of the cluster can't read it ({error.strerror}); {SHARED}"
        ) from None
    if not same:
        raise InputError(f"{network.path}: is another file on a worker of the cluster; {SHARED}")
    threads = needed("distributed").get_worker().state.nthreads
    if not is_onnx(network.path):
        needed("torch").set_num_threads(threads)
        return network
    return network if network.threads else replace(network, threads=threads)


# ---------------------------------------------------------------- connecting


@contextlib.contextmanager
def cluster(count, address=None):
    """The context with a Cluster: that at an address, or `count` processes of this machine."""
    distributed = needed("distributed")
    for name in ("asyncio", "tornado", *logging.root.manager.loggerDict):  # what the user should know is raised
        if name.startswith(("asyncio", "distributed", "tornado")):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with contextlib.ExitStack() as stack:
        if address is None:
            threads = max(1, cores() // count)
            options = {"dashboard_address": "127.0.0.1:0", "memory_limit": 0, "silence_logs": logging.CRITICAL + 1}
            with interrupts_wait():
                local = distributed.LocalCluster(n_workers=count, threads_per_worker=threads, **options)
            address = stack.enter_context(local).scheduler_address
        yield Cluster(stack.enter_context(connected(address)))


@contextlib.contextmanager
def interrupts_wait():
    """The context in which Ctrl-C waits. Processes that are started there, or from its threads, never get it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def connected(address):
    """The distributed.Client of the scheduler at an address; raises InputError where there is none."""
    distributed = needed("distributed")
    try:
        kind = asyncio.run(kind_of_server(address))
    except TimeoutError:  # of asyncio: what answers there speaks another language
        kind = "no answer"
    except Exception as error:  # what is no address, or nothing, fails in many ways
        kind = reason(error)
    if kind != "Scheduler":
        raise InputError(f"--dask {address}: is no Dask scheduler ({kind})")
    with warnings.catch_warnings(action="ignore"):  # other versions of packages
        client = distributed.Client(address, timeout=CONNECT_SECONDS)
    if not client.nthreads():
        print(f"{address}: has no workers yet; waiting for them.", file=sys.stderr)
    return client


async def kind_of_server(address):
    """What the server at an address says that it is: Scheduler, Worker, Nanny."""
    distributed = needed("distributed")
    async with asyncio.timeout(CONNECT_SECONDS), distributed.rpc(address, timeout=CONNECT_SECONDS - 1) as server:
        identity = await server.identity()
        return identity["type"]
