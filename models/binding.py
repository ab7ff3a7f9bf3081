"""Sessions whose large inputs stay where they compute.

A session that is given arrays copies each to its device in every run; of an item matrix that takes longer than to rank
with it. Here such arrays are put there once, for all sessions together, and the others are copied as each operator
wants them: a count that is read on the CPU stays there. What comes back is small, so that it comes back to the CPU.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.device import DeviceError, load_onnxruntime


class Resident:
    """Arrays in the memory of a device, "cpu" or "cuda", found again by identity; on the CPU they stay where they lie.

    They must not change: a device has a copy. Raises DeviceError if the device is not there or has no room for them.
    """

    def __init__(self, device: str, arrays: Iterable[NDArray[Any]]) -> None:
        onnxruntime = load_onnxruntime()
        self._held: dict[int, tuple[NDArray[Any], Any]] = {}  # with the array, so that no other gets its id
        for array in arrays:
            if id(array) in self._held:
                continue
            try:
                self._held[id(array)] = array, onnxruntime.OrtValue.ortvalue_from_numpy(array, device)
            except Exception as error:  # onnxruntime's own errors share no other base class
                raise DeviceError(
                    f"a matrix of {array.nbytes:,} bytes could not be put on {device}: {error}; give the service a "
                    "device with more memory (docs/gpu.md says how much), or set device to cpu"
                ) from error

    def value(self, array: NDArray[Any]) -> Any | None:
        """The array's value on the device, None if it is not held."""
        found = self._held.get(id(array))
        return None if found is None else found[1]


class BoundSession:
    """A session that runs as onnxruntime's own does, and finds inputs that are resident. Thread-safe.

    What is bound belongs to one run: a binding that two threads shared would give one the inputs of the other.
    """

    def __init__(self, session: Any, resident: Resident) -> None:
        self._session = session
        self._resident = resident

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The named outputs, on the CPU, for these inputs by name."""
        binding = self._session.io_binding()
        for name, array in feeds.items():
            value = self._resident.value(array)
            if value is None:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            else:
                binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        return binding.copy_outputs_to_cpu()  # type: ignore[no-any-return]
