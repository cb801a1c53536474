"""Every error Aghsan raises on purpose.

AghsanError
├── Refused                 a command the rules do not allow; nothing changed
│   ├── Invalid             the request itself is wrong                      422 / exit 2
│   ├── NotFound            the thing it names does not exist                404 / exit 4
│   ├── Conflict            it exists, in a state that forbids this          409 / exit 5
│   │   ├── StaleAttempt    the fencing token was overtaken
│   │   ├── SupersededSession  a newer session of the same worker took over
│   │   └── ReadOnlyAggregate  a record of it cannot be read
│   ├── NotOwner            another worker owns this task                    400
│   └── QuotaExceeded       a bound of the system is reached                 507
├── Unavailable             try again later                                  503 / exit 69
│   ├── Overloaded          a bounded queue is full
│   ├── LogUnavailable      the log did not answer; the outcome is not known
│   └── SteppedDown         another writer took the next epoch
├── UnfitEvent              an event that contradicts the state it is folded into
├── SequenceConflict        the log holds something this writer did not write
├── LogFull                 the store refuses to grow, or has no room for new work   507
├── LogDamaged              records are missing in the middle of the log
├── TopologyMismatch        a stream differs in a way that may not be migrated
├── DiskFull                this machine has no room for what it was to write
├── DataDirectoryError      the data directory cannot be used as it is
│   └── DirectoryInUse      another process uses it                                exit 5
├── BackupError             a backup that cannot be made, or is not what was written
├── ArtifactError           bytes that are not what they claim to be
│   └── OtherTraining       a folder holds the state of another training               exit 5
├── SnapshotUnusable        a snapshot that is damaged, or not of this log and program
├── ExtraMissing            an optional package that this needs is not installed
└── TrainingError           a training run ended without a result
    └── Unfit               this device lacks what the training takes; another may have it

An error says what happened, why, and what to do next.
"""


class AghsanError(Exception):
    """Base of the tree; never raised itself."""


class Refused(AghsanError):
    """A command the rules do not allow; the state is as it was."""


class Invalid(Refused):
    """The request itself is wrong."""


class NotFound(Refused):
    """The thing the request names does not exist."""


class Conflict(Refused):
    """The thing exists, in a state that forbids the request."""


class StaleAttempt(Conflict):
    """The fencing token was overtaken by a later attempt or a stored result."""


class SupersededSession(Conflict):
    """A newer session of the same worker id took over."""


class ReadOnlyAggregate(Conflict):
    """A record of this aggregate cannot be read, so that nobody knows what may follow on it."""


class NotOwner(Refused):
    """Another worker owns the task."""


class QuotaExceeded(Refused):
    """A bound of the system is reached."""


class Unavailable(AghsanError):
    """Try again later."""


class Overloaded(Unavailable):
    """A bounded queue is full."""


class LogUnavailable(Unavailable):
    """The log did not answer; whether the append happened is not known."""


class SteppedDown(Unavailable):
    """Another writer took the next epoch; this process may only read."""


class UnfitEvent(AghsanError):
    """An event that contradicts the state it is folded into; it is quarantined."""


class SequenceConflict(AghsanError):
    """The log's last sequence is not the one this writer expected."""


class LogFull(AghsanError):
    """The store refuses to grow, or what room it has is kept for work that was begun."""


class LogDamaged(AghsanError):
    """Records are missing in the middle of the log; no state can be made of it."""


class TopologyMismatch(AghsanError):
    """A stream or consumer differs from streams.yaml in a way that may not be migrated."""


class DiskFull(AghsanError):
    """This machine has no room for what it was to write; with room it can be done again."""


class DataDirectoryError(AghsanError):
    """The data directory is in use, unreadable, or not one of ours."""


class DirectoryInUse(DataDirectoryError):
    """Another process holds the lock on the directory."""


class BackupError(AghsanError):
    """A backup that cannot be made or restored, or is not what was written."""


class ArtifactError(AghsanError):
    """Bytes that are not what they claim to be: digest, header, shape or size."""


class OtherTraining(ArtifactError):
    """The folder that a training is to go on in holds the state of another one."""


class SnapshotUnusable(AghsanError):
    """A snapshot that is damaged, or not of this log and this program; it is passed over."""


class ExtraMissing(AghsanError):
    """An optional package that what was asked for needs is not installed."""


class TrainingError(AghsanError):
    """A training run ended without a result."""


class Unfit(TrainingError):
    """This device lacks what the training takes (memory, a base model), and another may have it."""
