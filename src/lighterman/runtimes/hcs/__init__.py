"""Windows containers through the Host Compute Service: `runtime.py` has the ports, `load.py` finds the DLL.

Imported on every platform, so that it can be tested on any; ctypes is loaded when a DLL is.
"""

from lighterman.runtimes.hcs.host import HostFacts
from lighterman.runtimes.hcs.options import SandboxSize, TerminateWithEngine
from lighterman.runtimes.hcs.runtime import HcsRuntime

__all__ = ["HcsRuntime", "HostFacts", "SandboxSize", "TerminateWithEngine"]
