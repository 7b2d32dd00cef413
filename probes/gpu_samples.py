"""Which of the sampled GPUs a run is on, and the series of each in columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from probes.rows import Columns, Floats

DriverIndex = tuple[object, object]
"""The driver's index of a GPU, and of the MIG instance in it or None."""


def driver_index(device: Mapping[str, object], told: object) -> DriverIndex:
    """The GPU among those ``told`` of the environment that torch calls ``device``.

    CUDA numbers its devices by itself (CUDA_VISIBLE_DEVICES, and CUDA_DEVICE_ORDER, which is the fastest first unless it is
    set): they are told by their UUID, or their place on the PCI bus, which ROCm's torch shares with its driver.
    """
    gpus = [gpu for gpu in told if isinstance(gpu, Mapping)] if isinstance(told, list) else []
    for name, bare in (("uuid", _bare), ("pci_bus_id", _bus)):
        mine = bare(device.get(name))
        found = [gpu for gpu in gpus if mine and bare(gpu.get(name)) == mine]
        if len(found) == 1:
            return found[0].get("index"), found[0].get("mig_index")
    if len(gpus) == 1:
        return gpus[0].get("index"), gpus[0].get("mig_index")
    return device.get("index") or 0, None


def _bare(uuid: object) -> str:
    """A UUID without the kind that NVML puts before it and torch does not."""
    return str(uuid or "").removeprefix("GPU-").removeprefix("MIG-").lower()


def _bus(place: object) -> str:
    """A place on the PCI bus with as many digits of the domain as it has: NVML writes eight, others four."""
    return str(place or "").lstrip("0").lower()


def gpu_name(index: object, mig_index: object) -> str:
    """What a series of a GPU, or of a MIG instance of it, is called."""
    return f"gpu{index}" if mig_index is None else f"gpu{index}.{mig_index}"


def sample_columns(samples: Columns) -> dict[str, Floats]:
    """The columns of samples under the names that :meth:`Measurement.add` gives them, each GPU's by its index."""
    told_pss = any("pss" in form.like for form in samples.forms)
    columns = {"rss": samples.column("rss")} | ({"pss": samples.column("pss")} if told_pss else {})
    told = {(place, key) for form in samples.forms for place, gpu in enumerate(form.like.get("gpus") or ()) for key in gpu}
    for place, key in sorted(told):
        if key not in ("index", "mig_index"):
            indices, instances = samples.column("gpus", place, "index"), samples.column("gpus", place, "mig_index")
            _spread(columns, samples.column("gpus", place, key), indices, instances, key)
    return columns


def _spread(columns: dict[str, Floats], values: Floats, indices: Floats, instances: Floats, key: str) -> None:
    """Give the values at one place in the list of GPUs to the GPUs that stood there."""
    for index, instance in {*zip(indices.tolist(), np.nan_to_num(instances, nan=-1.0).tolist(), strict=True)}:
        if index == index:  # noqa: PLR0124  not NaN
            here = (indices == index) & (np.nan_to_num(instances, nan=-1.0) == instance)
            name = f"{gpu_name(int(index), None if instance < 0 else int(instance))}.{key}"
            column = columns.setdefault(name, np.full(len(values), np.nan))
            column[here] = values[here]
