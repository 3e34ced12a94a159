"""Mamba-2 one position after another in numpy, in float64: what the tests of this folder compare with."""

import numpy as np


def recurrence(x, dt, a, b, c, d, starts=None, state=None):
    """(y [B, S, H, P], the last state [B, H, P, N]); shapes as for `hetjax.models.kernels.mamba_scan.ssd_scan`."""
    x, dt, a, b, c, d = (np.asarray(each, np.float64) for each in (x, dt, a, b, c, d))
    samples, length, heads, _ = x.shape
    y = np.zeros(x.shape)
    state = np.zeros((*x[:, 0].shape, b.shape[-1])) if state is None else np.array(state, np.float64)
    for i, t, head in np.ndindex(samples, length, heads):
        group = head // (heads // b.shape[2])
        if starts is not None and starts[i, t]:
            state[i, head] = 0
        decay, step = np.exp(dt[i, t, head] * a[head]), dt[i, t, head]
        state[i, head] = decay * state[i, head] + step * np.outer(x[i, t, head], b[i, t, group])
        y[i, t, head] = state[i, head] @ c[i, t, group] + d[head] * x[i, t, head]
    return y, state


def convolution(x, kernel, bias, segments=None, before=None):
    """silu(conv(x)), x [B, S, ...]; a position sees no further back than the start of its document and `before`."""
    taps, y = len(kernel), np.zeros(x.shape)
    for i, t in np.ndindex(x.shape[:2]):
        total = np.array(bias, np.float64)
        for lag in range(taps):
            if lag and segments is not None and t - lag >= 0 and segments[i, t - lag] != segments[i, t - lag + 1]:
                break
            if t - lag >= 0:
                total += kernel[taps - 1 - lag] * x[i, t - lag]
            elif before is not None:
                total += kernel[taps - 1 - lag] * before[i, t - lag]
        y[i, t] = total / (1 + np.exp(-total))
    return y


def gated_norm(y, z, scale, groups, epsilon):
    """norm(y · silu(z)) · scale, group by group; y and z [B, S, H, P]."""
    gated = y * z / (1 + np.exp(-z))
    out, heads = np.zeros(y.shape), y.shape[2] // groups
    for i, t, group in np.ndindex(*y.shape[:2], groups):
        own = slice(group * heads, (group + 1) * heads)
        values = gated[i, t, own]
        out[i, t, own] = values / np.sqrt((values**2).mean() + epsilon)
    return out * scale


def mixer(weights, config, x, segments=None):
    """A whole layer; `weights` by path."""
    projected = {name: np.tensordot(x, weights[f"{name}/kernel"], 1) for name in ("z", "x", "b", "c", "dt")}
    streams = [
        convolution(projected[name], weights[f"conv_{name}/kernel"], weights[f"conv_{name}/bias"], segments)
        for name in ("x", "b", "c")
    ]
    dt = np.log1p(np.exp(projected["dt"] + weights["dt_bias"]))
    dt = dt if config.min_dt is None else np.maximum(dt, config.min_dt)
    starts = None
    if segments is not None:
        starts = np.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    a = -np.exp(weights["A_log"])
    y, _ = recurrence(streams[0], dt, a, *streams[1:], weights["D"], starts)
    y = gated_norm(y, projected["z"], weights["norm/scale"], config.groups, config.norm_epsilon)
    return np.tensordot(y, weights["out/kernel"], 2)


def documents(rng, samples: int, length: int):
    """Ids of neighbouring documents of unlike lengths; ids come again, and are no small numbers."""
    borders = rng.random((samples, length)) < 0.25
    return np.array([7, -70_000, 1_000_003])[np.cumsum(borders, axis=1) % 3].astype(np.int32)
