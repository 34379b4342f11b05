"""The kernels of `compiled`, which numba compiles when they are first called and keeps on disk.

Arrays are contiguous.  x is (planes, channels, size) with a scale and shift for each channel, or (rows,
columns) with one for each column or for several side by side; `lower` and `upper` have one element, or one for each
channel or row.  `minus` is taken off what comes out, and `around`, which is used up, is the gradient of all that a
channel gives, what pads it included; both per channel or column.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import intrinsic

ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
FREE = "nnan", "nsz"  # no nan, and either zero
SMALL, THOUSANDTH = np.float32(1e-8), np.float32(1e-3)

kernel = njit(nogil=True, cache=True, error_model="numpy")  # which does not look for a zero before it divides
inner = njit(nogil=True, inline="always", error_model="numpy")


@njit(nogil=True, fastmath={"reassoc", "nsz"})
def plus(a, b):  # of a sum whose order is free, so that it is done many at a time
    return a + b


def _chosen(sign):  # with flags on the choice itself, without which no loop of them is done many at a time
    @intrinsic
    def choose(typing, a, b):
        def made(context, builder, signature, given):
            return builder.select(builder.fcmp_ordered(sign, *given, flags=FREE), *given, flags=FREE)

        return a(a, a), made

    return choose


lesser, greater = _chosen("<"), _chosen(">")


@inner
def grid(lower, upper, levels, integer):
    if integer:
        lower, upper = min(lower, ZERO), max(upper, ZERO)
    step = max(upper - lower, SMALL) / levels
    return step, (step * np.rint(lower / step) if integer else lower)


@inner
def clamped(code, levels):
    if code < ZERO:
        return ZERO
    return levels if code > levels else code


@kernel
def plane_values(x, scale, shift, lower, upper, levels, integer, multiply, minus, out):
    for c in range(x.shape[1]):
        j = c if lower.size > 1 else 0
        step, base = grid(lower[j], upper[j], levels, integer)
        by, off, last = scale[c], shift[c], base - minus[c]
        for n in range(x.shape[0]):
            for t in range(x.shape[2]):
                code = ((x[n, c, t] - off) / by - base) / step
                out[n, c, t] = np.rint(clamped(code, levels)) * step + last


@kernel
def row_values(x, scale, shift, lower, upper, levels, integer, multiply, minus, out):
    taps = x.shape[1] // len(scale)
    by, off, less = spread(scale, taps), spread(shift, taps), spread(minus, taps)
    for n in range(x.shape[0]):
        j = n if lower.size > 1 else 0
        step, base = grid(lower[j], upper[j], levels, integer)
        if multiply:
            for c in range(x.shape[1]):
                code = (x[n, c] * by[c] - base) / step
                out[n, c] = np.rint(clamped(code, levels)) * step + base
        else:
            for c in range(x.shape[1]):
                code = ((x[n, c] - off[c]) / by[c] - base) / step
                out[n, c] = np.rint(clamped(code, levels)) * step + (base - less[c])


@inner
def spread(few, taps):
    many = np.empty(len(few) * taps, few.dtype)
    for c in range(len(few)):
        many[c * taps : (c + 1) * taps] = few[c]
    return many


@kernel
def plane_gradients(
    grad, x, scale, shift, lower, upper, levels, integer, multiply, minus, around, seen, out, of_bounds, of_scaling
):
    sums = np.zeros((3, lower.size))  # below, above, rounding
    high = levels + HALF
    for c in range(x.shape[1]):
        j = c if lower.size > 1 else 0
        step, base = grid(lower[j], upper[j], levels, integer)
        by, off, last = scale[c], shift[c], base - minus[c]
        all_x, all_g = 0.0, 0.0
        for n in range(x.shape[0]):
            below, above, error, times, inside = ZERO, ZERO, ZERO, ZERO, ZERO
            for t in range(x.shape[2]):
                moved, g = x[n, c, t] - off, grad[n, c, t]
                code = (moved / by - base) / step
                under, over = code < -HALF, code > high
                below = plus(below, g if under else ZERO)
                above = plus(above, g if over else ZERO)
                g = ZERO if under or over else g
                inside = plus(inside, g)
                times = plus(times, g * moved)
                rounded = np.rint(clamped(code, levels))
                error = plus(error, g * (rounded - code))
                if seen is not None:
                    seen[n, c, t] = rounded * step + last
                if out is not None:
                    out[n, c, t] = g / by
            all_x += times
            all_g += inside
            sums[0, j] += below
            sums[1, j] += above
            sums[2, j] += error
            if around.size:
                around[c] -= below + above + inside
        if around.size:
            g, code = around[c], (-off / by - base) / step
            if code < -HALF:
                sums[0, j] += g
            elif code > high:
                sums[1, j] += g
            else:
                sums[2, j] += g * (np.rint(clamped(code, levels)) - code)
                all_x -= g * off
                all_g += g
        of_scaling[0, c] = -all_x / (by * by)
        of_scaling[1, c] = -all_g / by
    finish(sums, lower, upper, levels, integer, of_bounds)


@kernel
def row_gradients(
    grad, x, scale, shift, lower, upper, levels, integer, multiply, minus, around, seen, out, of_bounds, of_scaling
):
    rows, columns = x.shape
    sums, high = np.zeros((3, lower.size)), levels + HALF
    taps = columns // len(scale)
    by, off, less = spread(scale, taps), spread(shift, taps), spread(minus, taps)
    times, inside = np.zeros(columns, x.dtype), np.zeros(columns, x.dtype)
    for n in range(rows):
        j = n if lower.size > 1 else 0
        step, base = grid(lower[j], upper[j], levels, integer)
        below, above, error = ZERO, ZERO, ZERO
        for c in range(columns):
            g = grad[n, c]
            moved = x[n, c] if multiply else x[n, c] - off[c]
            code = ((moved * by[c] if multiply else moved / by[c]) - base) / step
            under, over = code < -HALF, code > high
            below = plus(below, g if under else ZERO)
            above = plus(above, g if over else ZERO)
            g = ZERO if under or over else g
            inside[c] += g
            times[c] += g * moved
            rounded = np.rint(clamped(code, levels))
            error = plus(error, g * (rounded - code))
            if seen is not None:
                seen[n, c] = rounded * step + (base - less[c])
            if out is not None:
                out[n, c] = g * by[c] if multiply else g / by[c]
        sums[0, j] += below
        sums[1, j] += above
        sums[2, j] += error
        if around.size:
            for c in range(columns):
                around[c] -= grad[n, c]
    if around.size:  # of one pair of boundaries, and no taps
        step, base = grid(lower[0], upper[0], levels, integer)
        for c in range(columns):
            g, code = around[c], (-off[c] / by[c] - base) / step
            if code < -HALF:
                sums[0, 0] += g
            elif code > high:
                sums[1, 0] += g
            else:
                sums[2, 0] += g * (np.rint(clamped(code, levels)) - code)
                times[c] -= g * off[c]
                inside[c] += g
    for i in range(scale.size):
        all_x, all_g = 0.0, 0.0
        for c in range(i * taps, (i + 1) * taps):
            all_x += times[c]
            all_g += inside[c]
        of_scaling[0, i] = all_x if multiply else -all_x / (scale[i] * scale[i])
        of_scaling[1, i] = -all_g / scale[i]
    finish(sums, lower, upper, levels, integer, of_bounds)


@kernel
def finish(sums, lower, upper, levels, integer, of_bounds):
    for j in range(lower.size):
        of_bounds[0, j], of_bounds[1, j] = of_ends(
            sums[0, j], sums[1, j], sums[2, j], lower[j], upper[j], levels, integer
        )


@inner
def of_ends(below, above, error, lower, upper, levels, integer):
    step, base = grid(lower, upper, levels, integer)
    moved = ((min(lower, ZERO) if integer else lower) - base) / step
    of_upper = (error - moved * (below + above)) / levels + above
    of_lower = below + above - of_upper
    # beyond zero the grid does not follow
    return 0.0 if integer and lower > ZERO else of_lower, 0.0 if integer and upper < ZERO else of_upper


# -- boundaries from ranges: `fused.Bounds` ---------------------------------------------------------------------------


@inner
def bounded(low, high, below, above, integer):
    width = high - low
    lower, upper = low + width * below, high - width * above
    least = lower + THOUSANDTH * width
    crossed, upper = upper < least, max(upper, least)
    held_low, held_high = integer and lower > ZERO and low < ZERO, integer and upper < ZERO and high > ZERO
    return ZERO if held_low else lower, ZERO if held_high else upper, crossed + 2 * held_low + 4 * held_high


@inner
def unbounded(of_lower, of_upper, low, high, below, above, flags):
    width, held_low, held_high = high - low, flags & 2, flags & 4
    drawn_low = max(of_lower, 0.0) * width if held_low else 0.0
    drawn_high = max(-of_upper, 0.0) * width if held_high else 0.0
    own, of_lower = 0.0 if held_high else of_upper, 0.0 if held_low else of_lower
    crossing = own if flags & 1 else 0.0
    own, of_lower = own - crossing, of_lower + crossing
    of_width = of_lower * below - own * above + THOUSANDTH * crossing
    return of_lower * width + drawn_low, drawn_high - own * width, of_lower - of_width, own + of_width


@kernel
def bounds(low, high, trim, integer, out, flags):
    for j in range(low.size):
        out[0, j], out[1, j], flags[j] = bounded(low[j], high[j], trim[0, j], trim[1, j], integer)


@kernel
def bounds_gradients(of_lower, of_upper, low, high, trim, flags, of_trim, of_range):
    for j in range(low.size):
        of_trim[0, j], of_trim[1, j], of_range[0, j], of_range[1, j] = unbounded(
            of_lower[j], of_upper[j], low[j], high[j], trim[0, j], trim[1, j], flags[j]
        )


@kernel
def marks(words):
    """Two sums of whole numbers, one of them weighted by place."""
    total, placed = np.uint64(0), np.uint64(0)
    for i in range(words.size):
        word = np.uint64(words[i])
        total += word
        placed += word * np.uint64(i + 1)
    return total, placed


# -- a whole layer: `whole.QuantizedLayer` ----------------------------------------------------------------------------


@kernel
def input_grid(
    lows, highs, padded, scale, shift, first, last, trim, levels, integer, bordered, lower, upper, zero, ends, at
):
    """Boundaries of x~ in these channels, and what a zero is quantized to where a border has zeros; `ends` and `at` are
    the range, the channels that set it, and what `unbounded` needs to know."""
    low, high, least_at, greatest_at = lows[first], highs[first], first, first
    for c in range(first, last):
        least, greatest = (min(lows[c], ZERO), max(highs[c], ZERO)) if padded else (lows[c], highs[c])
        least, greatest = (least - shift[c]) / scale[c], (greatest - shift[c]) / scale[c]
        if c == first or least < low:
            low, least_at = least, c
        if c == first or greatest > high:
            high, greatest_at = greatest, c
    below, above, flags = bounded(low, high, trim[0, 0], trim[1, 0], integer)
    if lower.size == 1:
        lower[0], upper[0] = below, above
    else:
        lower[first:last], upper[first:last] = below, above
    ends[0], ends[1], at[0], at[1], at[2] = low, high, least_at, greatest_at, flags
    if bordered:
        step, base = grid(below, above, levels, integer)
        for c in range(first, last):
            code = ((ZERO - shift[c]) / scale[c] - base) / step
            zero[c] = np.rint(clamped(code, levels)) * step + base


@kernel
def input_grid_gradients(of_lower, of_upper, ends, at, scale, trim, of_scaling, of_trim):
    low, high, least_at, greatest_at = ends[0], ends[1], at[0], at[1]
    of_trim[0], of_trim[1], of_low, of_high = unbounded(of_lower, of_upper, low, high, trim[0, 0], trim[1, 0], at[2])
    of_scaling[0, least_at] -= of_low / scale[least_at] * low
    of_scaling[1, least_at] -= of_low / scale[least_at]
    of_scaling[0, greatest_at] -= of_high / scale[greatest_at] * high
    of_scaling[1, greatest_at] -= of_high / scale[greatest_at]


@kernel
def weight_values(weight, scale, shift, zero, first, last, trim, levels, integer, out, bias, ends, flags):
    """Q(W~) in these channels; the bias takes W shift and Q(W~) zero in; `ends` (4, rows) are bounds and range."""
    taps = weight.shape[1] // scale.size
    by, off = spread(scale[first:last], taps), spread(shift[first:last], taps)
    pad = spread(zero[first:last], taps)
    for n in range(len(weight)):
        row, done = weight[n, first * taps : last * taps], out[n, first * taps : last * taps]
        low = high = row[0] * by[0]
        for c in range(len(row)):
            low, high = lesser(low, row[c] * by[c]), greater(high, row[c] * by[c])
        lower, upper, flags[n] = bounded(low, high, trim[0, n], trim[1, n], integer)
        ends[0, n], ends[1, n], ends[2, n], ends[3, n] = lower, upper, low, high
        step, base = grid(lower, upper, levels, integer)
        total = ZERO
        for c in range(len(row)):
            q = np.rint(clamped((row[c] * by[c] - base) / step, levels)) * step + base
            done[c] = q
            total = plus(total, row[c] * off[c] + q * pad[c])
        bias[n] += total


@kernel
def weight_again(weight, scale, first, last, levels, integer, out, ends):
    """Q(W~) in these channels once more, between the bounds that `weight_values` found."""
    taps = weight.shape[1] // scale.size
    by = spread(scale[first:last], taps)
    for n in range(len(weight)):
        row, done = weight[n, first * taps : last * taps], out[n, first * taps : last * taps]
        step, base = grid(ends[0, n], ends[1, n], levels, integer)
        for c in range(len(row)):
            done[c] = np.rint(clamped((row[c] * by[c] - base) / step, levels)) * step + base


@kernel
def weight_gradients(
    grad, of_bias, weight, scale, zero, first, last, trim, levels, integer, ends, flags, of_scaling, of_trim
):
    taps, over_all = weight.shape[1] // scale.size, levels + HALF
    by, pad = spread(scale[first:last], taps), spread(zero[first:last], taps)
    times, moves = np.zeros(len(by), weight.dtype), np.zeros(len(by), weight.dtype)
    last_at = np.int32(len(by) - 1)
    for n in range(len(weight)):
        row, of_row = weight[n, first * taps : last * taps], grad[n, first * taps : last * taps]
        lower, upper, low, high = ends[0, n], ends[1, n], ends[2, n], ends[3, n]
        step, base = grid(lower, upper, levels, integer)
        below, above, error, more = ZERO, ZERO, ZERO, of_bias[n]
        for c in range(len(row)):
            g, code = of_row[c] + more * pad[c], (row[c] * by[c] - base) / step
            under, over = code < -HALF, code > over_all
            below = plus(below, g if under else ZERO)
            above = plus(above, g if over else ZERO)
            g = ZERO if under or over else g
            times[c] += g * row[c]
            error = plus(error, g * (np.rint(clamped(code, levels)) - code))
        for c in range(len(row)):
            moves[c] += more * row[c]
        of_lower, of_upper = of_ends(below, above, error, lower, upper, levels, integer)
        of_trim[0, n], of_trim[1, n], of_low, of_high = unbounded(
            of_lower, of_upper, low, high, trim[0, n], trim[1, n], flags[n]
        )
        for end, g in ((low, of_low), (high, of_high)):
            first_at = last_at
            for c in range(len(row)):
                first_at = min(first_at, np.int32(c) if row[c] * by[c] == end else last_at)
            times[first_at] += g * row[first_at]
    for c in range(len(times)):
        of_scaling[0, first + c // taps] += times[c]
        of_scaling[1, first + c // taps] += moves[c]


# -- a product of attention: `product.QuantizedProduct` ---------------------------------------------------------------


@inner
def ends_of(low, high, scale, inverse):
    factor = ONE / scale if inverse else scale
    return low * factor, high * factor


@kernel
def factor_grid(lows, highs, scale, inverse, trim, integer, bounds, ends, counts):
    """Boundaries of what is multiplied by `scale`, or divided by it if `inverse`; `ends` are the range, `counts` how
    many channels have each, and what `unbounded` needs to know."""
    for c in range(lows.size):
        low, high = ends_of(lows[c], highs[c], scale[c], inverse)
        if c == 0 or low < ends[0]:
            ends[0], counts[0] = low, 0
        if c == 0 or high > ends[1]:
            ends[1], counts[1] = high, 0
        counts[0] += low == ends[0]
        counts[1] += high == ends[1]
    bounds[0, 0], bounds[1, 0], counts[2] = bounded(ends[0], ends[1], trim[0, 0], trim[1, 0], integer)


@kernel
def factor_grid_gradients(of_bounds, ends, counts, lows, highs, scale, inverse, trim, of_scale, of_trim):
    of_trim[0], of_trim[1], of_low, of_high = unbounded(
        of_bounds[0, 0], of_bounds[1, 0], ends[0], ends[1], trim[0, 0], trim[1, 0], counts[2]
    )
    for c in range(lows.size):
        low, high = ends_of(lows[c], highs[c], scale[c], inverse)
        share = of_low / counts[0] * lows[c] if low == ends[0] else 0.0
        share += of_high / counts[1] * highs[c] if high == ends[1] else 0.0
        of_scale[c] += -share / (scale[c] * scale[c]) if inverse else share
