"""Errors that a person can act on. Each message is one sentence that says what is wrong and what to do."""


class RlAssetsError(Exception):
    """Base of every error that the command line prints as one sentence, without a traceback."""


class ConfigurationError(RlAssetsError):
    """A setting is missing or has a value that cannot be used."""


class DatabaseError(RlAssetsError):
    """The database cannot be reached, started or migrated."""


class MalformedInput(RlAssetsError):
    """A file or row does not have the shape that it must have."""


class MissingCheckpoint(RlAssetsError):
    """A checkpoint that the registry names is not on disk, or is not what it was."""


class LedgerConflict(RlAssetsError):
    """A state change that the ledger does not allow."""


class CollapsedPolicy(RlAssetsError):
    """A training was stopped without a checkpoint, because its policy no longer traded, varied or kept the rules."""


class ServiceError(RlAssetsError):
    """A service elsewhere refused, failed or could not be reached."""


class UnknownOutcome(RlAssetsError):
    """A training was handed to a service and nobody knows yet what became of it. It is not handed over again."""


def reason_of(error: Exception) -> str:
    """What an error says, in one line, without its number, path and full stop: to be part of a sentence."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()).rstrip(".")
