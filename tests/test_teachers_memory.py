"What a stream of requests holds in memory: a window, however many come."
import json
import subprocess
import sys

import pytest

WORK = """
import json, sys
import psutil
from distillery.teachers.journal import Journal
from distillery.teachers.protocol import ChatResult, user_request

class Counts:
    name, identity, asked = "counts", {"model": "counts"}, 0
    def __init__(self, kind):
        self.instant, self.lazy = kind == "instant", kind == "lazy"
    async def stream(self, requests):
        for r in requests:
            self.asked += 1
            yield ChatResult(r.key, f"the answer to {r.key} " * 20, "stop", 100, 80)
    async def close(self): pass

def rss():
    return psutil.Process().memory_info().rss

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

def requests(n):
    for i in range(n): yield user_request(f"{i}", f"Passage {i}: " + "words that nobody else has " * 60 + f"Question {i}?")

file, kind, *stops = sys.argv[1:]
journal, teacher, marks, done = Journal(file), Counts(kind), {}, 0
for pair in journal.stream(teacher, requests(int(stops[-1]))):
    done += 1
    if str(done) in stops: marks[done] = rss()
sys.stdout.write(json.dumps({"asked": teacher.asked, "done": done, "peak": peak(), "marks": marks}))
"""


def measured(file, kind, *stops):
    done = subprocess.run([sys.executable, "-c", WORK, str(file), kind, *map(str, stops)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("kind", ["instant", pytest.param("lazy", marks=pytest.mark.slow)])
def test_ten_times_the_requests_take_at_most_a_tenth_more_memory(tmp_path, kind):
    small, large = (measured(tmp_path / f"{n}.sqlite", kind, n) for n in (1_000, 10_000))
    assert (small["asked"], large["asked"], large["done"]) == (1_000, 10_000, 10_000)
    assert large["peak"] <= 1.1 * small["peak"], f"{small['peak'] / 2**20:.1f} MiB, then {large['peak'] / 2**20:.1f} MiB"
    again = measured(tmp_path / "10000.sqlite", kind, 10_000)
    assert again["asked"] == 0  # served, by a window at a time
    assert again["peak"] <= 1.1 * small["peak"]


PER_HOUR = 36_000  # ten requests a second, for an hour


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_an_hour_leaks_less_than_a_megabyte(tmp_path):
    stops = (20_000, 40_000, 60_000, 80_000, 100_000)
    marks = {int(n): rss for n, rss in measured(tmp_path / "c.sqlite", "instant", *stops)["marks"].items()}
    slope = (marks[100_000] - marks[20_000]) / 80_000
    assert slope * PER_HOUR < 2**20, f"{slope * PER_HOUR / 2**20:.2f} MiB an hour: {marks}"
