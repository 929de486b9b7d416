"""What this machine offers and what glass-fast would use: versions, native build, backends, GPU."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from packaging.requirements import Requirement

import glass_fast
from glass_fast import kernels, native
from glass_fast.errors import GlassError

ENVIRONMENT_VARIABLES = (
    "GLASS_FAST_BACKENDS",
    "GLASS_FAST_BUILD",
    "GLASS_FAST_CPU",
    "GLASS_FAST_FAULT",
    "GLASS_FAST_NATIVE",
    "GLASS_FAST_REAL_DATA",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
)


def _packages() -> dict[str, dict[str, Any]]:
    """Declared dependencies: installed version, allowed range, extra; from the distribution's metadata."""
    found: dict[str, dict[str, Any]] = {}
    try:
        declared = requires("glass-fast") or []
    except PackageNotFoundError:
        return {
            "glass-fast": {"installed": None, "range": "", "extra": "", "note": "distribution not installed"}
        }
    for text in declared:
        requirement = Requirement(text)
        if requirement.name == "glass-fast":
            continue
        marker = str(requirement.marker or "")
        extra = marker.partition('extra == "')[2].partition('"')[0]
        name = requirement.name
        try:
            installed: str | None = version(name)
        except PackageNotFoundError:
            installed = None
        outside = installed is not None and not requirement.specifier.contains(installed, prereleases=True)
        note = "outside the tested range" if outside else ""
        if installed is None:
            note = f"install glass-fast[{extra}]" if extra else "missing: required"
        found.setdefault(
            name, {"installed": installed, "range": str(requirement.specifier), "extra": extra, "note": note}
        )
    return found


def _torchvision() -> dict[str, str]:
    if importlib.util.find_spec("torchvision") is None:
        return {"state": "absent", "detail": "timm cannot be imported without it"}
    try:
        from glass_fast.models.loading import ensure_torchvision

        state = ensure_torchvision()
    except Exception as error:  # a report must not fail because the thing it reports on does
        return {"state": "broken", "detail": f"{type(error).__name__}: {error}"}
    detail = {
        "native": "its operators load",
        "shimmed": "its CUDA operators do not load beside this torch; models work, nms does not",
    }
    return {"state": str(state), "detail": detail.get(str(state), "")}


def _gpu() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = (
            f"torch was built for CUDA {built}, but no usable device was found"
            if built
            else "torch is a CPU build"
        )
        return {"available": False, "reason": reason, "devices": []}
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "capability": f"{properties.major}.{properties.minor}",
            }
        )
    return {"available": True, "reason": "", "cuda": torch.version.cuda, "devices": devices}


def _ops(devices: list[str]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for op in kernels.ops():
        try:
            states = [
                {"name": s.name, "available": s.available, "reason": s.reason, "devices": list(s.devices)}
                for s in kernels.backends(op)
            ]
            chosen = {}
            for device in devices:
                try:
                    chosen[device] = kernels.choose(op, device)
                except GlassError as error:
                    chosen[device] = f"none ({error.message})"
            table[op] = {"backends": states, "chosen": chosen}
        except Exception as error:  # one broken op must not hide the others
            table[op] = {"backends": [], "chosen": {}, "error": f"{type(error).__name__}: {error}"}
    return table


def collect() -> dict[str, Any]:
    """Everything that ``glass-fast doctor`` reports, as plain JSON data; imports torch."""
    import torch

    ops_missing = native.ops_missing()
    core = native.core_or_reason()
    gpu = _gpu()
    return {
        "glass_fast": {
            "version": glass_fast.__version__,
            "python": platform.python_version(),
            "prefix": sys.prefix,
        },
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "packages": _packages(),
        "native": {
            **native.build_info(),
            "torch_ops": ops_missing or "loaded",
            "numpy_module": core if isinstance(core, str) else "loaded",
            "instruction_set": None if isinstance(core, str) else core.instruction_set(),
        },
        "torchvision": _torchvision(),
        "gpu": gpu,
        "nvcc": shutil.which("nvcc"),
        "ops": _ops(["cpu", "cuda"] if gpu["available"] else ["cpu"]),
        "environment": {name: os.environ[name] for name in ENVIRONMENT_VARIABLES if name in os.environ},
    }


def render(report: dict[str, Any]) -> str:
    """The report of :func:`collect` as text for a terminal."""
    ours, machine, built = report["glass_fast"], report["machine"], report["native"]
    lines = [
        f"glass-fast {ours['version']}, Python {ours['python']} in {ours['prefix']}",
        f"{machine['system']}, {machine['cpus']} CPUs, torch threads {machine['torch_threads']},"
        f" {machine['cpu_capability']}",
        "",
        "GPU",
    ]
    gpu = report["gpu"]
    if gpu["available"]:
        lines += [
            f"  {d['name']}, {d['memory_gib']} GiB, capability {d['capability']}" for d in gpu["devices"]
        ]
    else:
        lines.append(f"  none: {gpu['reason']}; everything runs on the CPU")
    lines += ["", "native library"]
    if built.get("native"):
        lines.append(
            f"  built ({built['mode']}) with {built['compiler']}, flags{built['flags'].rstrip()},"
            f" OpenMP {built['openmp'] or 'none'}, torch {built['torch']},"
            f" commit {built['commit'][:12] or 'unknown'}"
        )
    else:
        lines.append(f"  not built: {built.get('reason')}")
    lines += [f"  torch operators: {built['torch_ops']}", f"  numpy module: {built['numpy_module']}"]
    if built["instruction_set"]:
        lines.append(f"  dense kernels: {built['instruction_set']}")
    lines += ["", "operators (* = chosen, in order of preference)"]
    for op, entry in report["ops"].items():
        if entry.get("error"):
            lines.append(f"  {op}: broken: {entry['error']}")
            continue
        chosen = ", ".join(f"{name} on {device}" for device, name in entry["chosen"].items())
        lines.append(f"  {op}: {chosen}")
        for backend in entry["backends"]:
            mark = (
                "*" if backend["name"] in entry["chosen"].values() else ("-" if backend["available"] else "x")
            )
            state = "" if backend["available"] else "cannot run: "
            lines.append(
                f"    {mark} {backend['name']} ({', '.join(backend['devices'])}): {state}{backend['reason']}"
            )
    vision = report["torchvision"]
    lines += ["", f"torchvision: {vision['state']}{': ' + vision['detail'] if vision['detail'] else ''}"]
    lines += ["", "packages"]
    for name, entry in sorted(report["packages"].items(), key=lambda item: (item[1]["extra"], item[0])):
        extra = f" [{entry['extra']}]" if entry["extra"] else ""
        note = f"  ({entry['note']})" if entry["note"] else ""
        lines.append(f"  {name} {entry['installed'] or '-'}{extra}{note}")
    if report["environment"]:
        lines += ["", "environment", *(f"  {key}={value}" for key, value in report["environment"].items())]
    return "\n".join(lines)
