"""What is alive on devices."""

import jax


def alive(device: jax.Device, kind: str = "device") -> int:
    """Bytes of all arrays that anybody holds in the memory of a device, or of that kind of its host's for it."""
    arrays = [array for array in jax.live_arrays() if array.sharding.memory_kind == kind]
    shards = [shard.data for array in arrays for shard in array.addressable_shards if shard.device == device]
    # Arrays may share a buffer under several shardings.
    return sum({shard.unsafe_buffer_pointer(): shard.nbytes for shard in shards}.values())
