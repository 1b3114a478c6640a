"""Lighterman: a container engine that you can import.

Names are imported when they are first used, so that `import lighterman` costs nothing and starts nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for true under this name; `typing` itself costs 5 ms
if TYPE_CHECKING:
    from lighterman.asking import Options as Options
    from lighterman.checks import Exec as Exec
    from lighterman.checks import File as File
    from lighterman.checks import HealthCheck as HealthCheck
    from lighterman.checks import Http as Http
    from lighterman.checks import LogPattern as LogPattern
    from lighterman.checks import Port as Port
    from lighterman.checks import SdNotify as SdNotify
    from lighterman.checks import Tcp as Tcp
    from lighterman.checks import UnixSocket as UnixSocket
    from lighterman.container import Container as Container
    from lighterman.container import Process as Process
    from lighterman.engine import Engine as Engine
    from lighterman.errors import AlreadyClosed as AlreadyClosed
    from lighterman.errors import AlreadyExists as AlreadyExists
    from lighterman.errors import AlreadyStopped as AlreadyStopped
    from lighterman.errors import BrokenPipe as BrokenPipe
    from lighterman.errors import CommandNotExecutable as CommandNotExecutable
    from lighterman.errors import CommandNotFound as CommandNotFound
    from lighterman.errors import InternalError as InternalError
    from lighterman.errors import InvalidSpec as InvalidSpec
    from lighterman.errors import InvalidState as InvalidState
    from lighterman.errors import KeeperLost as KeeperLost
    from lighterman.errors import LightermanError as LightermanError
    from lighterman.errors import LimitExceeded as LimitExceeded
    from lighterman.errors import NotFound as NotFound
    from lighterman.errors import NotSupported as NotSupported
    from lighterman.errors import OperationPending as OperationPending
    from lighterman.errors import OperationTimeout as OperationTimeout
    from lighterman.errors import RootLocked as RootLocked
    from lighterman.errors import RuntimeFailed as RuntimeFailed
    from lighterman.errors import RuntimeUnavailable as RuntimeUnavailable
    from lighterman.errors import ServicingFailed as ServicingFailed
    from lighterman.errors import StoreError as StoreError
    from lighterman.errors import Unkillable as Unkillable
    from lighterman.errors import UsageError as UsageError
    from lighterman.journal import Event as Event
    from lighterman.lease import ConnectionLease as ConnectionLease
    from lighterman.lease import Lease as Lease
    from lighterman.lifecycle.events import State as State
    from lighterman.lifecycle.events import StateInfo as StateInfo
    from lighterman.lifecycle.health import Health as Health
    from lighterman.lifecycle.health import HealthReport as HealthReport
    from lighterman.lifecycle.health import ProbeResult as ProbeResult
    from lighterman.lifecycle.restart import RunEnd as RunEnd
    from lighterman.lifecycle.status import Status as Status
    from lighterman.logs.reader import Cursor as Cursor
    from lighterman.logs.reader import LogRecord as LogRecord
    from lighterman.logs.state import LogState as LogState
    from lighterman.logs.state import SinkState as SinkState
    from lighterman.results import Result as Result
    from lighterman.spec import BlkioLimit as BlkioLimit
    from lighterman.spec import CallableSink as CallableSink
    from lighterman.spec import ConsoleSize as ConsoleSize
    from lighterman.spec import Device as Device
    from lighterman.spec import ExitRecord as ExitRecord
    from lighterman.spec import JournaldSink as JournaldSink
    from lighterman.spec import Mount as Mount
    from lighterman.spec import Overlay as Overlay
    from lighterman.spec import PlainRoot as PlainRoot
    from lighterman.spec import Pressure as Pressure
    from lighterman.spec import ProcessConfig as ProcessConfig
    from lighterman.spec import ProcessSummary as ProcessSummary
    from lighterman.spec import Resources as Resources
    from lighterman.spec import RestartPolicy as RestartPolicy
    from lighterman.spec import Spec as Spec
    from lighterman.spec import Statistics as Statistics
    from lighterman.spec import SyslogSink as SyslogSink
    from lighterman.spec import Timings as Timings
    from lighterman.spec import Ulimit as Ulimit
    from lighterman.supervisor.backend import Backend as Backend
    from lighterman.supervisor.client import Client as Client
    from lighterman.supervisor.streams import Streams as Streams

_ERRORS = (
    "AlreadyClosed AlreadyExists AlreadyStopped BrokenPipe CommandNotExecutable CommandNotFound InternalError "
    "InvalidSpec InvalidState KeeperLost LightermanError LimitExceeded NotFound NotSupported OperationPending "
    "OperationTimeout RootLocked RuntimeFailed RuntimeUnavailable ServicingFailed StoreError Unkillable "
    "UsageError"
)
_VALUES = (
    "BlkioLimit CallableSink ConsoleSize Device ExitRecord JournaldSink Mount Overlay PlainRoot Pressure ProcessConfig "
    "ProcessSummary Resources RestartPolicy Spec Statistics SyslogSink Timings Ulimit"
)
_WHERE = {
    "asking": "Options",
    "checks": "Exec File HealthCheck Http LogPattern Port SdNotify Tcp UnixSocket",
    "container": "Container Process",
    "engine": "Engine",
    "errors": _ERRORS,
    "journal": "Event",
    "lease": "ConnectionLease Lease",
    "lifecycle.events": "State StateInfo",
    "lifecycle.health": "Health HealthReport ProbeResult",
    "lifecycle.restart": "RunEnd",
    "lifecycle.status": "Status",
    "logs.reader": "Cursor LogRecord",
    "logs.state": "LogState SinkState",
    "results": "Result",
    "spec": _VALUES,
    "supervisor.backend": "Backend",
    "supervisor.client": "Client",
    "supervisor.streams": "Streams",
}
_MODULES = {name: f"lighterman.{module}" for module, names in _WHERE.items() for name in names.split()}

__version__ = "0.1.0"
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    from importlib import import_module

    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'lighterman' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
