"""What is alive on devices."""

import jax


def alive(device: jax.Device) -> int:
    """Bytes of all arrays that anybody holds on a device."""
    shards = [shard.data for array in jax.live_arrays() for shard in array.addressable_shards if shard.device == device]
    # Arrays may share a buffer under several shardings.
    return sum({shard.unsafe_buffer_pointer(): shard.nbytes for shard in shards}.values())
