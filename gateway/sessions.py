"""Sessions of agents: who speaks on a subject, and whether it still may."""

import itertools

from core import errors, runtime, subjects
from core.projections.tables import Table
from core.projections.workers import Worker


class Sessions:
    """The workers of the state by their subject tokens."""

    def __init__(self, door: runtime.Runtime) -> None:
        self._door = door
        self._ids: dict[str, str] = {}
        """Worker ids by token, of the workers in `_indexed`."""
        self._indexed: Table[Worker] | None = None

    def require(self, token: str, session: str) -> str:
        """The worker id behind a subject token. Raises SupersededSession for an old session."""
        worker = self.worker_of(token)
        if worker is None or worker.session != session:
            raise errors.SupersededSession(why_over(worker))
        return worker.worker_id

    def worker_of(self, token: str) -> Worker | None:
        """The worker behind a subject token, if the state knows one."""
        workers = self._door.state.workers.table
        if workers is not self._indexed:
            self._indexed, self._ids = workers, {}  # the state was built anew
        # Tokens of strange ids are hashes. Workers only ever join, at the end of the table.
        for worker_id in itertools.islice(reversed(workers.rows), len(workers) - len(self._ids)):
            self._ids[subjects.token(worker_id)] = worker_id
        known = self._ids.get(token)
        return None if known is None else workers.get(known)


def require_own(token: str, worker_id: str) -> None:
    """Raises Invalid for a worker on a subject that is not its own."""
    if subjects.token(worker_id) != token:
        raise errors.Invalid(f"worker {worker_id!r} may not speak on the subject of {token!r}")


def why_over(worker: Worker | None) -> str:
    """Why a session is over, and what its agent's owner can do."""
    if worker is None or not worker.session:
        return (
            "this session is over: the server knows no session of this worker, as after its data "
            "was replaced; start the agent again"
        )
    return (
        f"this session is over: another agent joined as {worker.worker_id} from {worker.hostname} "
        f"({worker.lane}), and a worker id belongs to one agent at a time; give one of them "
        "another --worker-id"
    )
