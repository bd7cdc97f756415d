"""The passes of _passes.cpp on a GPU, in Triton; triton_passes.py calls them.

All see activations as rows of C adjacent channels, whose outer dimensions are four sizes n0..n3 with a stride for each tensor: the memory
orders of tensors may differ. A program works on a block of rows along n3 and a block of channels. Sums are float32, in an order that does
not depend on chance, and are merged in float64. Offsets are 64-bit. Annotations are values here, which old releases of Triton expect.
"""

import triton
import triton.language as tl

# Sizes and counts say nothing about how memory is aligned: with one kernel for all of them, fewer are compiled. Channels and strides do.
SIZES = (
    "R",
    "CB",
    "NB",
    "G",
    "N",
    "APART",
    "n0",
    "n1",
    "n2",
    "n3",
    "MORE_OUTPUTS",
    "K",
    "KH",
    "KW",
    "DEPTH",
    "SLICES",
    "STRIDE",
    "PADDING",
)
SIZES += ("WB", "HB", "STEPS", "D", "H", "W", "Do", "Ho", "Wo", "OUTPUTS")


def kernel(function):
    """A kernel that is compiled once for all SIZES."""
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return triton.jit(do_not_specialize=[name for name in names if name in SIZES])(function)


@triton.jit
def _locate(tile, NB, n1, n2, BR: tl.constexpr):
    """Indices along the four outer dimensions of a block of rows: three numbers, and one for each row."""
    q = tile // NB
    rows = (tile % NB).to(tl.int64) * BR + tl.arange(0, BR)
    k = q % n2
    q = q // n2
    return (q // n1).to(tl.int64), (q % n1).to(tl.int64), k.to(tl.int64), rows


# ---- mean and variance ----


@kernel
def moments(x, part, R, C, CB, APART, N, BR: tl.constexpr, BC: tl.constexpr):
    """For each of G groups of N blocks of rows: count, mean, and sum of squared deviations, float32 (3, G, C)."""
    pid = tl.program_id(0)
    g = (pid // CB).to(tl.int64)
    c = (pid % CB) * BC + tl.arange(0, BC)
    cm = c < C
    first = g * N * BR
    # A value near the mean is subtracted first, so that the difference of two large squares is never taken.
    r = first + tl.arange(0, BR)
    m = (r < R)[:, None] & cm[None, :]
    v = tl.load(x + r[:, None] * C + c[None, :], mask=m, other=0).to(tl.float32)
    near = tl.sum(v, 0) / tl.minimum(R - first, BR).to(tl.float32)
    s1 = tl.zeros((BR, BC), tl.float32)
    s2 = tl.zeros((BR, BC), tl.float32)
    for i in range(N):
        r = first + i * BR + tl.arange(0, BR)
        m = (r < R)[:, None] & cm[None, :]
        v = tl.load(x + r[:, None] * C + c[None, :], mask=m, other=0).to(tl.float32)
        v = tl.where(m, v - near[None, :], 0.0)
        s1 += v
        s2 += v * v
    count = tl.minimum(R - first, N * BR).to(tl.float32)
    store_moments(part + g * C + c, APART, cm, count, near, tl.sum(s1, 0), tl.sum(s2, 0))


@triton.jit
def store_moments(to, APART, cm, count, near, s1, s2):
    off = s1 / count
    squares = s2 - s1 * off
    tl.store(to, tl.zeros_like(s1) + count, mask=cm)
    tl.store(to + APART, near + off, mask=cm)
    tl.store(to + 2 * APART, tl.where(squares < 0, 0.0, squares), mask=cm)


@kernel
def finish_moments(part, mean, var, G, C, APART, BG: tl.constexpr, BC: tl.constexpr):
    """Merge the groups (Chan et al. 1979)."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    cm = c < C
    near = tl.load(part + APART + c, mask=cm, other=0).to(tl.float64)
    count = tl.zeros((BG, BC), tl.float64)
    s1 = tl.zeros((BG, BC), tl.float64)
    s2 = tl.zeros((BG, BC), tl.float64)
    for first in range(0, G, BG):
        g = first + tl.arange(0, BG)
        m = (g < G)[:, None] & cm[None, :]
        at = part + g.to(tl.int64)[:, None] * C + c[None, :]
        n = tl.load(at, mask=m, other=0).to(tl.float64)
        d = tl.load(at + APART, mask=m, other=0).to(tl.float64) - near[None, :]
        count += n
        s1 += n * d
        s2 += tl.load(at + 2 * APART, mask=m, other=0).to(tl.float64) + n * d * d
    total = tl.maximum(tl.sum(count, 0), 1.0)
    off = tl.sum(s1, 0) / total
    squares = tl.sum(s2, 0) / total - off * off
    tl.store(mean + c, (near + off).to(tl.float32), mask=cm)
    tl.store(var + c, tl.where(squares < 0, 0.0, squares).to(tl.float32), mask=cm)


# ---- normalise ----


@kernel
def normalise(
    x, scale, shift, res, out, C, CR, CB, NB, n1, n2, n3,
    x0, x1, x2, x3, o0, o1, o2, o3, r0, r1, r2, r3,
    RELU: tl.constexpr, RES: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``x * scale + shift + res``, then ReLU; the residual has CR <= C channels."""
    pid = tl.program_id(0)
    c = (pid % CB) * BC + tl.arange(0, BC)
    cm = c < C
    i, j, k, r = _locate(pid // CB, NB, n1, n2, BR)
    rm = r < n3
    m = rm[:, None] & cm[None, :]
    a = tl.load(scale + c, mask=cm, other=0)
    b = tl.load(shift + c, mask=cm, other=0)
    at = i * x0 + j * x1 + k * x2 + r * x3
    v = tl.load(x + at[:, None] + c[None, :], mask=m, other=0).to(tl.float32) * a[None, :] + b[None, :]
    if RES:
        extra = i * r0 + j * r1 + k * r2 + r * r3
        v += tl.load(res + extra[:, None] + c[None, :], mask=rm[:, None] & (c < CR)[None, :], other=0).to(tl.float32)
    if RELU:
        v = tl.where(v < 0, 0.0, v)
    to = i * o0 + j * o1 + k * o2 + r * o3
    tl.store(out + to[:, None] + c[None, :], v.to(out.dtype.element_ty), mask=m)


# ---- what passes need for each channel, in a launch each instead of one for each operation ----


@kernel
def affine(weight, bias, mean, var, scale, shift, inverse, C, CN, eps, BC: tl.constexpr):
    """What a batch norm of CN <= C channels does to each; the others become zero."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    cm = c < C
    deviation = tl.sqrt(tl.load(var + c, mask=cm, other=1) + eps)
    a = tl.load(weight + c, mask=c < CN, other=0).to(tl.float32) / deviation
    b = tl.load(bias + c, mask=c < CN, other=0).to(tl.float32) - tl.load(mean + c, mask=cm, other=0) * a
    tl.store(scale + c, a, mask=cm)
    tl.store(shift + c, b, mask=cm)
    tl.store(inverse + c, 1 / deviation, mask=cm)


@kernel
def factors(scale, inverse, mean, total, dot, fb, fk, gw, C, share, BC: tl.constexpr):
    """Factors of `backward` and the gradient of the batch norm's weight; `share` is 1 / values per channel."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    cm = c < C
    a = tl.load(scale + c, mask=cm, other=0)
    i = tl.load(inverse + c, mask=cm, other=0)
    d = tl.load(dot + c, mask=cm, other=0)
    b = -a * i * i * d * share
    tl.store(fb + c, b, mask=cm)
    tl.store(fk + c, -a * tl.load(total + c, mask=cm, other=0) * share - b * tl.load(mean + c, mask=cm, other=0), mask=cm)
    tl.store(gw + c, d * i, mask=cm)


@kernel
def running(old_mean, old_var, mean, var, CN, momentum, unbiased, BC: tl.constexpr):
    """The running statistics after a batch."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    cm = c < CN
    m = tl.load(old_mean + c, mask=cm, other=0)
    v = tl.load(old_var + c, mask=cm, other=0)
    tl.store(old_mean + c, m + momentum * (tl.load(mean + c, mask=cm, other=0) - m), mask=cm)
    tl.store(old_var + c, v + momentum * (tl.load(var + c, mask=cm, other=0) * unbiased - v), mask=cm)


# ---- backward ----


@triton.jit
def _passed(g, x, z, at_g, at_x, at_z, a, b, m, RELU: tl.constexpr, OUT: tl.constexpr):
    """The gradient where the ReLU let something through, and x."""
    gv = tl.load(g + at_g, mask=m, other=0).to(tl.float32)
    xv = tl.load(x + at_x, mask=m, other=0).to(tl.float32)
    if RELU:
        if OUT:
            zv = tl.load(z + at_z, mask=m, other=0).to(tl.float32)
        else:
            zv = xv * a[None, :] + b[None, :]
        gv = tl.where(zv > 0, gv, 0.0)
    return gv, xv


@kernel
def reduce(
    g, x, z, scale, shift, mean, part, C, CB, NB, APART, N, n0, n1, n2, n3,
    g0, g1, g2, g3, x0, x1, x2, x3, z0, z1, z2, z3,
    RELU: tl.constexpr, OUT: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """For each of G groups of N blocks of rows: sums of g' and of ``g' * (x - mean)``, float32 (2, G, C)."""
    pid = tl.program_id(0)
    group = pid // CB
    c = (pid % CB) * BC + tl.arange(0, BC)
    cm = c < C
    a = tl.load(scale + c, mask=cm, other=0)
    b = tl.load(shift + c, mask=cm, other=0)
    mu = tl.load(mean + c, mask=cm, other=0)
    s1 = tl.zeros((BR, BC), tl.float32)
    s2 = tl.zeros((BR, BC), tl.float32)
    for step in range(N):
        i, j, k, r = _locate(group * N + step, NB, n1, n2, BR)
        m = ((r < n3) & (i < n0))[:, None] & cm[None, :]
        at_g = (i * g0 + j * g1 + k * g2 + r * g3)[:, None] + c[None, :]
        at_x = (i * x0 + j * x1 + k * x2 + r * x3)[:, None] + c[None, :]
        at_z = (i * z0 + j * z1 + k * z2 + r * z3)[:, None] + c[None, :]
        gv, xv = _passed(g, x, z, at_g, at_x, at_z, a, b, m, RELU, OUT)
        s1 += gv
        # Masked rows have a gradient of zero; x is finite there.
        s2 += gv * (xv - mu[None, :])
    to = part + group.to(tl.int64) * C + c
    tl.store(to, tl.sum(s1, 0), mask=cm)
    tl.store(to + APART, tl.sum(s2, 0), mask=cm)


@kernel
def finish_sums(part, total, dot, G, C, APART, BG: tl.constexpr, BC: tl.constexpr):
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    cm = c < C
    s1 = tl.zeros((BG, BC), tl.float64)
    s2 = tl.zeros((BG, BC), tl.float64)
    for first in range(0, G, BG):
        g = first + tl.arange(0, BG)
        m = (g < G)[:, None] & cm[None, :]
        at = part + g.to(tl.int64)[:, None] * C + c[None, :]
        s1 += tl.load(at, mask=m, other=0).to(tl.float64)
        s2 += tl.load(at + APART, mask=m, other=0).to(tl.float64)
    tl.store(total + c, tl.sum(s1, 0).to(tl.float32), mask=cm)
    tl.store(dot + c, tl.sum(s2, 0).to(tl.float32), mask=cm)


@kernel
def backward(
    g, x, z, scale, shift, fa, fb, fk, gx, gr, C, CB, NB, n1, n2, n3,
    g0, g1, g2, g3, x0, x1, x2, x3, z0, z1, z2, z3, y0, y1, y2, y3, r0, r1, r2, r3,
    RELU: tl.constexpr, OUT: tl.constexpr, MASKED: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """``fa * g' + fb * x + fk`` and, where MASKED, g' itself."""
    pid = tl.program_id(0)
    c = (pid % CB) * BC + tl.arange(0, BC)
    cm = c < C
    i, j, k, r = _locate(pid // CB, NB, n1, n2, BR)
    m = (r < n3)[:, None] & cm[None, :]
    a = tl.load(scale + c, mask=cm, other=0)
    b = tl.load(shift + c, mask=cm, other=0)
    at_g = (i * g0 + j * g1 + k * g2 + r * g3)[:, None] + c[None, :]
    at_x = (i * x0 + j * x1 + k * x2 + r * x3)[:, None] + c[None, :]
    at_z = (i * z0 + j * z1 + k * z2 + r * z3)[:, None] + c[None, :]
    gv, xv = _passed(g, x, z, at_g, at_x, at_z, a, b, m, RELU, OUT)
    fav = tl.load(fa + c, mask=cm, other=0)
    fbv = tl.load(fb + c, mask=cm, other=0)
    fkv = tl.load(fk + c, mask=cm, other=0)
    v = fav[None, :] * gv + fbv[None, :] * xv + fkv[None, :]
    tl.store(gx + (i * y0 + j * y1 + k * y2 + r * y3)[:, None] + c[None, :], v.to(gx.dtype.element_ty), mask=m)
    if MASKED:
        tl.store(gr + (i * r0 + j * r1 + k * r2 + r * r3)[:, None] + c[None, :], gv.to(gr.dtype.element_ty), mask=m)


# ---- kernels of convolutions ----


@kernel
def band(
    w, out, R, OUTPUTS, INPUTS, MORE_OUTPUTS, MORE_INPUTS, K, KH, KW, DEPTH, STRIDE, PADDING, w0, w1, w2, w3, w4,
    BR: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """The dense (out, MORE_OUTPUTS, KH, KW, DEPTH, MORE_INPUTS) of a weight (OUTPUTS, INPUTS, K, KH, KW): its taps, zeros elsewhere."""
    blocks = tl.cdiv(MORE_INPUTS, BI)
    pid = tl.program_id(0)
    r = (pid // blocks) * BR + tl.arange(0, BR)
    c = (pid % blocks) * BI + tl.arange(0, BI)
    i = r % DEPTH
    q = r // DEPTH
    x = q % KW
    q = q // KW
    y = q % KH
    q = q // KH
    n = q % MORE_OUTPUTS
    tap = i - (q // MORE_OUTPUTS) * STRIDE + PADDING
    m = ((r < R) & (n < OUTPUTS) & (tap >= 0) & (tap < K))[:, None] & (c < INPUTS)[None, :]
    at = n.to(tl.int64) * w0 + tap.to(tl.int64) * w2 + y.to(tl.int64) * w3 + x.to(tl.int64) * w4
    v = tl.load(w + at[:, None] + (c.to(tl.int64) * w1)[None, :], mask=m, other=0)
    to = r.to(tl.int64)[:, None] * MORE_INPUTS + c[None, :]
    tl.store(out + to, v.to(out.dtype.element_ty), mask=(r < R)[:, None] & (c < MORE_INPUTS)[None, :])


@kernel
def unband(
    g, w, R, OUTPUTS, INPUTS, MORE_OUTPUTS, MORE_INPUTS, K, KH, KW, DEPTH, SLICES, STRIDE, PADDING, w0, w1, w2, w3, w4,
    BR: tl.constexpr, BI: tl.constexpr,
):  # fmt: skip
    """The weight's gradient, from that of its band."""
    blocks = tl.cdiv(INPUTS, BI)
    pid = tl.program_id(0)
    r = (pid // blocks) * BR + tl.arange(0, BR)
    c = (pid % blocks) * BI + tl.arange(0, BI)
    tap = r % K
    q = r // K
    x = q % KW
    q = q // KW
    y = q % KH
    n = q // KH
    m = (r < R)[:, None] & (c < INPUTS)[None, :]
    v = tl.zeros((BR, BI), tl.float32)
    for o in range(SLICES):
        i = tap + o * STRIDE - PADDING
        row = ((((o * MORE_OUTPUTS + n).to(tl.int64) * KH + y) * KW + x) * DEPTH + i) * MORE_INPUTS
        v += tl.load(g + row[:, None] + c[None, :], mask=m & ((i >= 0) & (i < DEPTH))[:, None], other=0).to(tl.float32)
    at = n.to(tl.int64) * w0 + tap.to(tl.int64) * w2 + y.to(tl.int64) * w3 + x.to(tl.int64) * w4
    tl.store(w + at[:, None] + (c.to(tl.int64) * w1)[None, :], v.to(w.dtype.element_ty), mask=m)


@kernel
def patches(
    x, out, H, W, C, Ho, Wo, WB, K, VECTORS, S, T, P, Q, sn, sh,
    RUN: tl.constexpr, LARGE: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The K = kh * RUN numbers under a kernel for each pixel of the output, RUN = kw * C of them in a row, zeros up to 8 * VECTORS."""
    pid = tl.program_id(0)
    wide = (pid % WB) * BR + tl.arange(0, BR)
    q = pid // WB
    high = q % Ho
    n = (q // Ho).to(tl.int64)
    k = tl.arange(0, BK)
    down = k // RUN
    along = k - down * RUN
    h = high * S - P + down
    first = (wide * T - Q) * C
    w = first[:, None] + along[None, :]
    m = (w >= 0) & (w < W * C) & ((h >= 0) & (h < H) & (k < K))[None, :]
    if LARGE:
        at = (h.to(tl.int64) * sh)[None, :] + w
    else:
        at = (h * sh)[None, :] + w
    v = tl.load(x + n * sn + at, mask=m, other=0)
    to = ((n * Ho + high) * Wo + wide) * (8 * VECTORS)
    tl.store(out + to[:, None] + k[None, :], v, mask=(wide < Wo)[:, None] & (k < 8 * VECTORS)[None, :])
