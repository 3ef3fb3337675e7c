from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Programs that freeze others read these imports; what compiled modules import they do not see.
    from rnnfast.native import _arenas as _arenas
    from rnnfast.native import _arrays as _arrays
    from rnnfast.native import _backward as _backward
    from rnnfast.native import _blas as _blas
    from rnnfast.native import _engine as _engine
    from rnnfast.native import _interrupts as _interrupts
    from rnnfast.native import _kernels as _kernels
    from rnnfast.native import _locks as _locks
    from rnnfast.native import _plans as _plans
    from rnnfast.native import _programs as _programs
    from rnnfast.native import threads as threads
