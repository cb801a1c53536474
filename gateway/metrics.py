"""`/metrics`: what the control process does, in figures for Prometheus.

Everything is read where it stands when asked, also what is not durable yet: a log that does not
answer must show here, not silence this too. Labels take few values: routes go by their pattern,
lanes by a closed list, workers and tasks by no name at all.
"""

import asyncio
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata

import psutil
from aiohttp import web

from core import appends, lanes, turns
from gateway.control import Control
from gateway.exposition import Family, Sample, counter, encode, gauge, gauges, histogram, summary
from gateway.refusals import Refusals
from gateway.relay import Relay

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TICK_SECONDS = 0.010
WINDOW_SECONDS = 60
OTHER = "other"
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class Highest:
    """The highest of what was noted within the last minute."""

    def __init__(self) -> None:
        self._highest: deque[tuple[int, float]] = deque()
        """By second, the highest of each; only those that no later one exceeds."""

    def note(self, now: float, value: float) -> None:
        """It was so much at this time, in seconds. Forgets too, so that nothing piles up."""
        while self._highest and self._highest[-1][1] <= value:
            self._highest.pop()
        if not self._highest or self._highest[-1][0] != int(now):
            self._highest.append((int(now), value))
        self.value(now)

    def value(self, now: float) -> float:
        """The most within the last minute."""
        while self._highest and self._highest[0][0] < int(now) - WINDOW_SECONDS:
            self._highest.popleft()
        return self._highest[0][1] if self._highest else 0.0


class LoopDelay:
    """How late the event loop wakes whoever sleeps, and how long it computes in one turn: late
    without computing, it was kept waiting itself. Both in seconds."""

    def __init__(self) -> None:
        self.last = 0.0
        self.late = Highest()
        self.computing = Highest()

    async def run(self) -> None:
        """Measure, for ever."""
        loop = asyncio.get_running_loop()
        turns.take_longest_seconds(loop)  # of the start
        while True:
            due = loop.time() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            now = loop.time()
            self.last = max(0.0, now - due)
            self.late.note(now, self.last)
            self.computing.note(now, turns.take_longest_seconds(loop))


class Requests:
    """Answers given over HTTP, counted by method, pattern of the route, and status."""

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, str, int]] = Counter()

    def count(self, request: web.Request, status: int) -> None:
        """One more answer."""
        resource = request.match_info.route.resource
        route = OTHER if resource is None else resource.canonical
        method = request.method if request.method in METHODS else OTHER
        self._answers[method, route, status] += 1

    def family(self) -> Family:
        """All of them."""
        samples = [
            Sample(number, {"method": method, "route": route, "status": str(status)})
            for (method, route, status), number in sorted(self._answers.items())
        ]
        return Family("aghsan_http_requests_total", "counter", "Answers over HTTP.", samples)


class Metrics:
    """Gathers the figures of a control process."""

    def __init__(
        self,
        control: Control,
        refusals: Refusals,
        waiting_pulls: Callable[[], Mapping[str, int]],
        relay: Relay,
    ) -> None:
        self.delay = LoopDelay()
        self.requests = Requests()
        self._control = control
        self._refusals = refusals
        self._waiting_pulls = waiting_pulls
        self._relay = relay
        self._process = psutil.Process()

    async def page(self, _: web.Request) -> web.Response:
        """Everything, as Prometheus reads it."""
        # Thousands of connections are as many open files to count.
        process = await asyncio.to_thread(lambda: list(_of_process(self._process)))
        parts = (self._of_loop, self._of_log, self._of_room, self._of_state, self._of_edges)
        text = encode(family for part in parts for family in part())
        return web.Response(body=text + encode(process), headers={"Content-Type": CONTENT_TYPE})

    def _of_loop(self) -> Iterator[Family]:
        now = asyncio.get_running_loop().time()
        yield Family(
            "aghsan_build_info",
            "gauge",
            "The version that runs.",
            [Sample(1, {"version": metadata.version("aghsan")})],
        )
        yield gauge(
            "aghsan_loop_delay_seconds",
            "How late the control loop woke its sleeper, the last time.",
            self.delay.last,
        )
        yield gauge(
            "aghsan_loop_delay_max_seconds",
            "How late the control loop woke its sleeper, at most in the last minute.",
            self.delay.late.value(now),
        )
        yield gauge(
            "aghsan_loop_turn_cpu_max_seconds",
            "CPU time of one turn of the control loop, at most in the last minute.",
            self.delay.computing.value(now),
        )

    def _of_log(self) -> Iterator[Family]:
        door = self._control.door
        yield gauge("aghsan_log_sequence", "Last sequence that was decided.", door.state.seq)
        yield gauge("aghsan_log_durable_sequence", "Last sequence on disk.", door.durable_seq)
        yield gauge("aghsan_log_writer_epoch", "Epoch of the log's writer.", door.state.epoch)
        yield gauge("aghsan_commands_pending", "Commands that wait for an append.", door.pending)
        done = door.appends
        yield histogram(
            "aghsan_log_append_events",
            "Events in one append.",
            appends.EVENTS_BOUNDS,
            done.by_events,
            done.events,
        )
        yield summary(
            "aghsan_log_append_seconds",
            "Time of appends until acknowledged.",
            done.count,
            done.seconds,
        )
        yield counter(
            "aghsan_log_append_unanswered_total",
            "Tries to append that got no definite answer.",
            done.unanswered,
        )
        yield gauge(
            "aghsan_log_unanswered_seconds",
            "How long an append goes without a definite answer, once that is out of the ordinary.",
            door.unanswered_seconds,
        )

    def _of_room(self) -> Iterator[Family]:
        yield gauge(
            "aghsan_admission_stopped",
            "Whether new work is turned away because there is no room for it.",
            float(bool(self._control.door.shortage)),
        )
        yield gauge(
            "aghsan_disk_free_bytes",
            "Free on the disk of the data directory.",
            self._control.room.free_bytes,
        )
        swept = self._control.sweeper
        yield counter(
            "aghsan_chunks_swept_total",
            "Chunks taken out of the artifact store because nothing needed them.",
            swept.chunks_swept,
        )
        yield counter(
            "aghsan_chunks_swept_bytes_total", "Bytes of those chunks.", swept.bytes_swept
        )
        usage = self._control.usage
        yield gauge("aghsan_artifacts_bytes", "Bytes of all artifacts.", usage.total_bytes)
        yield counter(
            "aghsan_quota_refusals_total",
            "Checkpoints, results and claims that found no room within a quota, or whose worker "
            "stored too much unasked.",
            usage.refused,
        )

    def _of_state(self) -> Iterator[Family]:
        state = self._control.door.state
        yield gauge(
            "aghsan_log_quarantined_records",
            "Stored records that could not be folded.",
            len(state.quarantine),
        )
        yield gauges("aghsan_tasks", "Tasks by status.", "status", state.tasks.counts)
        yield gauge("aghsan_queue_length", "Tasks that wait to be claimed.", len(state.tasks.queue))
        online = {str(via): len(ids) for via, ids in state.workers.online_by.items()}
        yield gauges("aghsan_workers_online", "Workers online, by how they work.", "via", online)
        yield counter(
            "aghsan_paused_seconds_total",
            "Seconds that executors stood still while latency was measured beside them.",
            self._control.presence.paused_seconds,
        )
        yield gauge("aghsan_workers", "Workers ever seen.", len(state.workers.table))
        yield gauge("aghsan_nodes", "Specializations of the tree.", len(state.graph.nodes))
        yield gauge("aghsan_champions", "Nodes with a champion.", len(state.graph.champions))
        yield gauge(
            "aghsan_rounds_undecided", "Rounds without verdict.", len(state.rounds.undecided)
        )
        yield gauge(
            "aghsan_decisions_waiting",
            "Nodes at which a model waits for a person to decide.",
            len(state.questions.table),
        )
        pulls: Counter[str] = Counter()
        for lane, waiting in self._waiting_pulls().items():
            pulls[lane if lane in lanes.ALL else OTHER] += waiting
        yield gauges("aghsan_lane_waiting_pulls", "Agents that wait for work.", "lane", pulls)

    def _of_edges(self) -> Iterator[Family]:
        kept = self._refusals
        yield counter("aghsan_refusals_total", "Refusals noted for the audit.", kept.recorded)
        yield counter(
            "aghsan_refusals_dropped_total", "Refusals that found no room to be kept.", kept.dropped
        )
        yield self.requests.family()
        relay = self._relay
        yield gauge(
            "aghsan_relay_connections", "Agents connected through /nats.", relay.connections
        )
        yield gauge(
            "aghsan_relay_held_bytes",
            "Of agents' messages on their way through /nats.",
            relay.held_bytes,
        )
        yield counter(
            "aghsan_relay_cut_total",
            "Connections through /nats cut because too many bytes were on their way.",
            relay.cut,
        )
        connected = {
            account: float(bus.is_connected)
            for account, bus in self._control.connections.by_account().items()
        }
        yield gauges(
            "aghsan_nats_connected", "Whether an account is connected.", "account", connected
        )


def _of_process(process: psutil.Process) -> Iterator[Family]:
    """The figures that all programs have, by the names that all give them."""
    with process.oneshot():
        memory, times = process.memory_info(), process.cpu_times()
        started = process.create_time()
    yield gauge("process_resident_memory_bytes", "Memory in use.", memory.rss)
    yield gauge("process_virtual_memory_bytes", "Memory that has addresses.", memory.vms)
    yield counter("process_cpu_seconds_total", "CPU time used.", times.user + times.system)
    yield gauge("process_start_time_seconds", "When it started, since 1970.", started)
    if os.name == "posix":
        yield gauge("process_open_fds", "Open files and connections.", process.num_fds())
