"""How long the pages of `ksearch browse` take on a large database: `python scripts/bench_web.py`.

A server of its own is asked over HTTP. Every request differs from those before it, so that nothing it kept
of an answer helps; what it keeps of the database does.
"""

from __future__ import annotations

import http.client
import itertools
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
from _bench import ROOT, parser, save, table

sys.path.insert(0, str(ROOT))
from ksearch import backends
from ksearch.pages import views
from ksearch.store import Store
from ksearch.store.listing import Listing
from ksearch.types import Winner
from ksearch.web.query import COLUMNS
from tests import big_database

_REQUESTS = 20


class Server:
    """A process that serves one database, and what it was asked."""

    def __init__(self, process: subprocess.Popen[str], port: int, start_s: float) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.start_s = start_s
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def get(self, path: str) -> tuple[float, int]:
        """Milliseconds, and the bytes that came. Raises SystemExit for any answer but 200."""
        began = time.perf_counter()
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read()
        took_ms = 1e3 * (time.perf_counter() - began)
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {body[:500]!r}")
        return took_ms, len(body)

    @property
    def memory_mb(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1e6


@contextmanager
def serving(database: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "ksearch", "browse", "--port", "0", "--db", str(database)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            found = re.search(r":(\d+)/", process.stdout.readline())
            if found is None:
                raise SystemExit("the server did not start")
            yield Server(process, int(found[1]), time.perf_counter() - began)
        finally:
            process.terminate()


def row(
    server: Server, what: str, paths: Iterable[str], before: Callable[[], None] | None = None
) -> dict[str, Any]:
    took, sizes = [], []
    for path in paths:
        if before is not None:
            before()
        took_ms, size = server.get(path)
        took.append(took_ms)
        sizes.append(size)
    print(f"{what}: {statistics.median(took):.0f} ms, at most {max(took):.0f}", flush=True)
    return {
        "page": what,
        "requests": len(took),
        "median ms": statistics.median(took),
        "largest ms": max(took),
        "KB": statistics.median(sizes) / 1e3,
    }


def slug(winner: Winner) -> str:
    return views.slug(winner.workload, winner.target)


def measure(server: Server, database: Path) -> list[dict[str, Any]]:
    rng = random.Random(0)
    with Store.open(database, readonly=True) as store:
        listing = Listing(store)
        listed = listing.winners()
        tried = {(search.workload_key, search.target_id) for search in listing.searches()}
        kernels = [each for each in listed if each.is_kernel]
        rng.shuffle(kernels)
        searched = [each for each in kernels if (each.workload_key, each.target_id) in tried]
        bare = [each for each in kernels if (each.workload_key, each.target_id) not in tried]
        chosen = [each.number for each in (*searched[: _REQUESTS + 1], *bare[:_REQUESTS])]
        full = listing.full(chosen)
        listing.close()
    drawn = [full[number] for number in chosen]
    with_trials, without = [
        [slug(each) for each in part] for part in (drawn[: _REQUESTS + 1], drawn[_REQUESTS + 1 :])
    ]
    pages = -(-len(listed) // 50)
    words = [
        "gelu",
        "h200",
        "softmax 4096",
        "bfloat16",
        "2x",
        "rms",
        "a100 linear",
        "512 float16",
        "epyc",
        "l2",
    ]
    typed = [text[:end] for text in words for end in range(1, len(text) + 1)]
    orders = [f"{sign}{column}" for column in COLUMNS for sign in ("", "-")]

    def lists(queries: Iterable[dict[str, object]]) -> list[str]:
        return [f"/?{urlencode(query)}" for query in queries]

    pairs = [f"/compare?w={one}&w={other}" for one, other in itertools.pairwise(with_trials)]
    promote = _promoting(database, drawn)
    return [
        row(server, "list, the first time", ["/"]),
        row(server, "list, any page", lists({"page": rng.randint(1, pages)} for _ in range(_REQUESTS))),
        row(server, "list, every order for the first time", lists({"sort": order} for order in orders)),
        row(server, "list, as one types", lists({"q": text, "part": 1} for text in typed)),
        row(
            server,
            "list, op and dtype, sorted",
            lists(
                {"op": op, "dtype": dtype, "sort": rng.choice(orders)}
                for op in big_database.OPS[:7]
                for dtype in big_database.DTYPES
            ),
        ),
        row(server, "list, after a winner was stored", ["/"] * 5, promote),
        row(server, "list, sorted, after a winner was stored", ["/?sort=-speedup"] * 5, promote),
        row(server, "workload with 200 trials", [f"/w/{name}" for name in with_trials[:_REQUESTS]]),
        row(server, "workload without trials", [f"/w/{name}" for name in without]),
        row(server, "its part that changes", [f"/w/{name}/part" for name in with_trials[:_REQUESTS]]),
        row(
            server,
            "its figures, which come after it",
            [f"/w/{name}/figures" for name in with_trials[:_REQUESTS]],
        ),
        row(server, "two side by side", pairs),
        row(server, "kernel as a Python file", [f"/w/{name}/kernel.py" for name in with_trials[:_REQUESTS]]),
    ]


def _promoting(database: Path, winners: list[Winner]) -> Callable[[], None]:
    """Puts one of them in force again."""
    left = iter(winners)

    def promote() -> None:
        winner = next(left)
        with Store.open(database) as store:
            stored = store.artifact(str(winner.artifact))
            assert stored is not None
            store.promote(winner, source=stored.source, binary=stored.binary, environment={})

    return promote


def main() -> None:
    arguments = parser(__doc__, "web-2-cores")
    arguments.add_argument("--winners", type=int, default=100_000)
    arguments.add_argument("--trials", type=int, default=1_000_000)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder, "big.db")
        big_database.make(database, given.winners, given.trials)
        with serving(database) as server:
            time.sleep(15)  # it imports torch and plotly meanwhile, for the figures
            rows = measure(server, database)
            memory_mb = server.memory_mb
    facts = {
        "winners": f"{given.winners:,}",
        "trials": f"{given.trials:,}",
        "cores": str(len(psutil.Process().cpu_affinity())),
        "pages after": f"{server.start_s:.1f} s",
        "memory": f"{memory_mb:.0f} MB",
        "load": f"{psutil.getloadavg()[0]:.1f}",
    }
    target = backends.get("cpu").target()
    save(given, target, rows, "python scripts/bench_web.py", body=table(rows), more_facts=facts)


if __name__ == "__main__":
    main()
