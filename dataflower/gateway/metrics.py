"""Counts and times for Prometheus, taken from finished invocations and read from the host when they are asked for.

Names begin with `dataflower_`, or are those that OpenTelemetry's conventions for generative AI give to servers
(`gen_ai_server_...`, with dots and units as Prometheus writes them).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from dataflower.core.trace import TaskTrace
from dataflower.host.api import ContainerStart, HostApi, InvocationRecord

TIMES_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
TOKEN_TIMES_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
MODEL = "gen_ai_request_model"

Labels = tuple[str, ...]


class Counter:
    """Sums by labels. Lighter than the library's own, which locks: everything here happens on one loop."""

    def __init__(self, name: str, help_: str, labels: Sequence[str]) -> None:
        self._about = name, help_, labels
        self._values: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Count."""
        self._values[labels] = self._values.get(labels, 0) + amount

    def family(self) -> Metric:
        """For the exposition."""
        name, help_, labels = self._about
        family = CounterMetricFamily(name, help_, labels=labels)
        for given, value in self._values.items():
            family.add_metric(given, value)
        return family


class Histogram:
    """Counts by size and labels. `bounds`: upper limits of the buckets, ascending."""

    def __init__(self, name: str, help_: str, labels: Sequence[str], bounds: Sequence[float] = TIMES_S) -> None:
        self._about = name, help_, labels
        self._bounds = bounds
        self._values: dict[Labels, tuple[list[int], list[float]]] = {}

    def observe(self, labels: Labels, value: float) -> None:
        """Count a value."""
        found = self._values.get(labels)
        if found is None:
            found = self._values[labels] = [0] * (len(self._bounds) + 1), [0.0]
        found[0][bisect_left(self._bounds, value)] += 1
        found[1][0] += value

    def family(self) -> Metric:
        """For the exposition."""
        name, help_, labels = self._about
        family = HistogramMetricFamily(name, help_, labels=labels)
        limits = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        for given, (counts, total) in self._values.items():
            buckets = list(zip(limits, (float(n) for n in accumulate(counts)), strict=True))
            family.add_metric(given, buckets=buckets, sum_value=total[0])
        return family


class Metrics:
    """All that a server counts. Lives on the host's loop; nothing in it is thread-safe."""

    def __init__(self, host: HostApi) -> None:
        self._host = host
        workflow, stage = ["workflow"], ["workflow", "stage"]
        self._invocations = Counter(
            "dataflower_invocations", "Invocations that are over", ["workflow", "state", "code"]
        )
        self._durations = Histogram("dataflower_invocation_duration_seconds", "From arrival to the end", workflow)
        self._firsts = Histogram("dataflower_invocation_first_output_seconds", "From arrival to a result", workflow)
        self._tasks = Counter("dataflower_stage_tasks", "Attempts that are over", ["workflow", "stage", "error"])
        self._queued = Histogram("dataflower_stage_queue_seconds", "From complete inputs to a container", stage)
        self._fetched = Histogram("dataflower_stage_fetch_seconds", "From a container to the start of user code", stage)
        self._ran = Histogram("dataflower_stage_run_seconds", "User code", stage)
        self._cold = Histogram(
            "dataflower_stage_cold_start_seconds", "Queueing of tasks that waited for a container to start", stage
        )
        self._starts = Histogram(
            "dataflower_container_start_seconds", "Starts of containers by phase", ["workflow", "stage", "phase"]
        )
        self._requests = Counter("dataflower_http_requests", "HTTP requests", ["method", "route", "status"])
        self._served = Histogram("dataflower_http_request_duration_seconds", "HTTP requests", ["method", "route"])
        self._tokens = Counter("dataflower_tokens", "Tokens of models", ["model", "kind"])
        self._ttft = Histogram("gen_ai_server_time_to_first_token_seconds", "From arrival to the first token", [MODEL])
        self._tpot = Histogram(
            "gen_ai_server_time_per_output_token_seconds", "Per token after the first", [MODEL], TOKEN_TIMES_S
        )
        self._generations = Histogram("gen_ai_server_request_duration_seconds", "Requests of models", [MODEL])
        self._usage = Histogram(
            "gen_ai_client_token_usage", "Tokens of one request", [MODEL, "gen_ai_token_type"], TOKENS
        )
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Source(self))
        ProcessCollector(registry=self._registry)

    # --- what happened ---------------------------------------------------------------------------------------

    def finished(self, record: InvocationRecord) -> None:
        """An invocation is over."""
        name = record.workflow
        code = record.failure.code.value if record.failure is not None else "OK"
        self._invocations.add((name, record.state.value, code))
        trace = record.trace
        if trace is None:
            return
        if trace.finished:
            self._durations.observe((name,), trace.finished - trace.arrived)
        if trace.first_output:
            self._firsts.observe((name,), trace.first_output - trace.arrived)
        for task in trace.tasks:
            self._task((name, task.stage), task)

    def _task(self, labels: Labels, task: TaskTrace) -> None:
        self._tasks.add((*labels, task.error))
        if task.dispatched:
            (self._cold if task.cold else self._queued).observe(labels, task.dispatched - task.queued)
        if task.started:
            self._fetched.observe(labels, task.started - task.dispatched)
        if task.cold and task.started and task.first_output:
            self._starts.observe((*labels, "first_output"), task.first_output - task.started)
        if task.ended and task.started:
            self._ran.observe(labels, task.ended - task.started)

    def started(self, start: ContainerStart) -> None:
        """A container is ready: one observation for each phase, in however many pieces it was told."""
        phases = {"spawn": start.spawn_s, "import": start.import_s, "setup": start.setup_s}
        for part in start.phases:
            phases[part.kind.value] = phases.get(part.kind.value, 0.0) + part.seconds
        for phase, seconds in phases.items():
            self._starts.observe((start.workflow, start.stage, phase), seconds)

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        """An HTTP request is over."""
        self._requests.add((method, route, str(status)))
        self._served.observe((method, route), seconds)

    def generated(
        self,
        model: str,
        *,
        prompt: int,
        completion: int = 0,
        cached: int = 0,
        duration_s: float,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
    ) -> None:
        """A model has answered a request. `tpot_s`: per token after the first."""
        for kind, count in (("prompt", prompt), ("completion", completion), ("cached", cached)):
            self._tokens.add((model, kind), count)
        self._usage.observe((model, "input"), prompt)
        if completion:
            self._usage.observe((model, "output"), completion)
        self._generations.observe((model,), duration_s)
        if ttft_s is not None:
            self._ttft.observe((model,), ttft_s)
        if tpot_s is not None:
            self._tpot.observe((model,), tpot_s)

    # --- the exposition --------------------------------------------------------------------------------------

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """(text, content type) in the format that the scraper asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def families(self) -> Iterable[Metric]:
        """Everything, now."""
        for kept in vars(self).values():
            if isinstance(kept, Counter | Histogram):
                yield kept.family()
        yield from self._workflows()
        yield from self._devices()
        yield from self._usage_now()

    def _workflows(self) -> Iterable[Metric]:
        running = GaugeMetricFamily("dataflower_invocations_running", "Invocations", labels=["workflow"])
        containers = GaugeMetricFamily("dataflower_containers", "Containers", labels=["workflow", "stage", "state"])
        queued = GaugeMetricFamily("dataflower_stage_queued_tasks", "Tasks that wait", labels=["workflow", "stage"])
        pools: set[str] = set()
        pace = GaugeMetricFamily(
            "dataflower_stage_run_over_plan", "Measured over planned run time, lately", labels=["workflow", "stage"]
        )
        for status in self._host.workflows():
            running.add_metric((status.name,), status.running)
            for stage in status.stages:
                if stage.pool in pools:
                    continue
                labels = (status.name, stage.stage)
                if stage.pool:  # once for all who share it
                    pools.add(stage.pool)
                    owner, _, name = stage.pool.rpartition("/")
                    labels = (owner, name)
                for state, count in (("starting", stage.starting), ("idle", stage.idle), ("busy", stage.busy)):
                    containers.add_metric((*labels, state), count)
                queued.add_metric(labels, stage.queued)
                if stage.run_over_plan is not None:
                    pace.add_metric(labels, stage.run_over_plan)
        return running, containers, queued, pace

    def _devices(self) -> Iterable[Metric]:
        of_device, of_stage = ["device"], ["device", "workflow", "stage"]
        running = GaugeMetricFamily(
            "dataflower_device_batches_running", "Batches that have the device", labels=of_device
        )
        begun = CounterMetricFamily("dataflower_device_batches", "Batches that have had the device", labels=of_device)
        used = GaugeMetricFamily("dataflower_device_memory_bytes", "Memory of the device's stages", labels=of_device)
        moved = CounterMetricFamily("dataflower_device_offloaded", "Artifacts that made room", labels=of_device)
        waiting = GaugeMetricFamily("dataflower_device_waiting_tasks", "Tasks that wait for a turn", labels=of_stage)
        window = GaugeMetricFamily("dataflower_device_window_seconds", "How long a batch stays open", labels=of_stage)
        for state in self._host.devices():
            labels = (state.name,)
            running.add_metric(labels, state.running)
            begun.add_metric(labels, state.batches)
            used.add_metric(labels, state.used_bytes)
            moved.add_metric(labels, state.offloaded)
            for sharer in state.sharers:
                waiting.add_metric((state.name, sharer.workflow, sharer.stage), sharer.waiting)
                window.add_metric((state.name, sharer.workflow, sharer.stage), sharer.window.wait_s)
        return running, begun, used, moved, waiting, window

    def _usage_now(self) -> Iterable[Metric]:
        usage = self._host.usage()
        for name, help_, value in (
            ("dataflower_arenas", "Arenas of shared memory", usage.arenas),
            ("dataflower_arena_bytes", "Shared memory of all arenas", usage.arena_bytes),
            ("dataflower_host_arena_used_bytes", "Of that, inputs of running invocations", usage.host_arena_used_bytes),
            ("dataflower_slots", "Pieces of shared memory that somebody still needs", usage.slots),
            ("dataflower_zygotes", "Fork servers", usage.zygotes),
        ):
            yield GaugeMetricFamily(name, help_, value=value)


class _Source(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.families()
