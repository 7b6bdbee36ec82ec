"""Prefect sends logs and events in the background and records task runs from them: wait for that before its server ends."""

import time

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler


def wait_for_recorder(seconds: float = 3.0) -> None:
    """Return when every task run of the newest flow run is in a final state on the server, or after some ``seconds``."""
    APILogHandler().flush()
    EventsWorker.drain_all(timeout=seconds)
    deadline = time.monotonic() + seconds
    with get_client(sync_client=True) as client:
        newest = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
        if not newest:
            return
        mine = FlowRunFilter(id=FlowRunFilterId(any_=[newest[0].id]))
        while time.monotonic() < deadline:
            runs = client.read_task_runs(flow_run_filter=mine)
            if runs and all(run.state is not None and run.state.is_final() for run in runs):
                return
            time.sleep(0.05)
