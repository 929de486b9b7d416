"""The plan of a sharded job: which sample lies in which shard and micro-batch, fixed before the start.

Because the plan is a pure function of three integers, workers, restarts and order change nothing in the
result.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from glass_fast.errors import ConfigError


@dataclass(frozen=True)
class ShardSpec:
    """Samples ``start <= i < stop`` of the job make up shard ``index``."""

    index: int
    start: int
    stop: int

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.stop - self.start

    @property
    def stem(self) -> str:
        """File name without suffix, such as ``shard-000007``."""
        return f"shard-{self.index:06d}"


@dataclass(frozen=True)
class ShardPlan:
    """``num`` samples in shards of ``shard_size``, processed in micro-batches of ``batch_size`` rows.

    Raises:
        ConfigError: GF-CONFIG-110, a number below 1.
    """

    num: int
    shard_size: int
    batch_size: int

    def __post_init__(self) -> None:
        for name in ("num", "shard_size", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    "GF-CONFIG-110", f"{name} = {value!r} in a shard plan; expected a whole number >= 1"
                )

    @cached_property
    def shards(self) -> list[ShardSpec]:
        """All shards in order; the last one may be short."""
        starts = range(0, self.num, self.shard_size)
        return [ShardSpec(i, start, min(start + self.shard_size, self.num)) for i, start in enumerate(starts)]

    def micro_batches(self, spec: ShardSpec) -> list[range]:
        """Global sample indices of each micro-batch of a shard. None crosses a shard; the last may be
        short."""
        starts = range(spec.start, spec.stop, self.batch_size)
        return [range(start, min(start + self.batch_size, spec.stop)) for start in starts]

    def as_dict(self) -> dict[str, int]:
        """The three integers, for manifests."""
        return {"num": self.num, "shard_size": self.shard_size, "batch_size": self.batch_size}
