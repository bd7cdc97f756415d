"""3x3x3 max pooling with stride 2 and padding 1 on a GPU, and its gradient, in Triton; triton_passes.py calls them.

In the forward pass a program goes through the whole depth of its windows, so that each plane is read once for all of them. In the backward
pass it makes the gradients of all voxels under its windows, so that each window is read a few times, not once for each of its voxels.
"""

import triton
import triton.language as tl

from ctcovid.kernels.triton_kernels import kernel, store_moments


@triton.jit
def _plane(
    x, sign, outside, near, s1, s2, inside, oh, ow, c, H, W, C, xh, xw,
    MEASURE: tl.constexpr, SIGN: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The largest of 3x3 of one plane with its number, and the sums over the 2x2 voxels that belong to no other window."""
    best = tl.full((BW, BC), float("-inf"), tl.float32)
    # Where all are -inf, the first voxel inside.
    where = tl.zeros((BW, BC), tl.int32) + (tl.where(oh == 0, 3, 0) + tl.where(ow == 0, 1, 0))[:, None]
    for kh in tl.static_range(3):
        h = 2 * oh - 1 + kh
        row = inside & (h >= 0) & (h < H)
        for kw in tl.static_range(3):
            w = 2 * ow - 1 + kw
            m = (row & (w >= 0) & (w < W))[:, None] & (c < C)[None, :]
            at = h.to(tl.int64) * xh + (w.to(tl.int64) * xw)[:, None] + c[None, :]
            v = tl.load(x + at, mask=m, other=outside[None, :]).to(tl.float32)
            if MEASURE and (kh * kw > 0):
                d = tl.where(m, v - near[None, :], 0.0)
                s1 += d
                s2 += d * d
            if SIGN:
                v = v * sign[None, :]
                where = tl.where(v <= best, where, kh * 3 + kw)
            best = tl.maximum(best, v, propagate_nan=tl.PropagateNan.ALL)
    return best, where, s1, s2


@kernel
def pool(
    x, signs, out, tap, part, CB, WB, HB, APART, STEPS, D, H, W, C, xb, xd, xh, xw, Do, Ho, Wo, ob, od, oh, ow,
    MEASURE: tl.constexpr, TAP: tl.constexpr, RELU: tl.constexpr, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """3x3x3 pooling of one block of windows along the width, STEPS rows of them, through the whole depth."""
    pid = tl.program_id(0)
    c = (pid % CB) * BC + tl.arange(0, BC)
    cm = c < C
    group = pid // CB
    q = group // WB
    wide = (group % WB) * BW
    columns = wide + tl.arange(0, BW)
    top = (q % HB) * STEPS
    b = (q // HB).to(tl.int64)
    sign = tl.load(signs + c, mask=cm, other=1.0)
    # What is outside is smaller than all, whatever the sign. NaN is larger.
    outside = (float("-inf") * sign).to(x.dtype.element_ty)
    om = (columns < Wo)[:, None] & cm[None, :]
    s1 = tl.zeros((BW, BC), tl.float32)
    s2 = tl.zeros((BW, BC), tl.float32)
    near = tl.zeros((BC,), tl.float32)
    if MEASURE:
        start = x + b * xb + (2 * top).to(tl.int64) * xh + (2 * columns.to(tl.int64) * xw)[:, None] + c[None, :]
        near = tl.sum(tl.load(start, mask=om, other=0).to(tl.float32), 0) / tl.minimum(Wo - wide, BW).to(tl.float32)
    for step in range(STEPS):
        row = top + step
        # Of the plane before the first one; not looked at.
        v0 = tl.full((BW, BC), float("-inf"), tl.float32)
        t0 = tl.zeros((BW, BC), tl.int32)
        at = b * xb
        to = b * ob + row.to(tl.int64) * oh
        for o in range(Do):
            behind = 2 * o + 1 < D
            v1, t1, s1, s2 = _plane(
                x + at, sign, outside, near, s1, s2, row < Ho, row, columns, c, H, W, C, xh, xw, MEASURE, TAP, BW, BC
            )  # fmt: skip
            v2, t2, s1, s2 = _plane(
                x + at + xd, sign, outside, near, s1, s2, (row < Ho) & behind, row, columns, c, H, W, C, xh, xw, MEASURE, TAP, BW, BC
            )  # fmt: skip
            where = tl.where((v1 <= v0) & (o > 0), t0, 9 + t1)
            best = tl.maximum(v0, v1, propagate_nan=tl.PropagateNan.ALL)
            where = tl.where(v2 <= best, where, 18 + t2)
            best = tl.maximum(best, v2, propagate_nan=tl.PropagateNan.ALL)
            v0 = v2
            t0 = t2
            where_to = to + (columns.to(tl.int64) * ow)[:, None] + c[None, :]
            m = om & (row < Ho)
            if TAP:
                tl.store(tap + where_to, where.to(tl.uint8), mask=m)
                best = best * sign[None, :]
            if RELU:
                best = tl.where(best < 0, 0.0, best)
            tl.store(out + where_to, best.to(out.dtype.element_ty), mask=m)
            at += 2 * xd
            to += od
    if MEASURE:
        high = tl.minimum(H - 2 * top, 2 * STEPS)
        count = (high * tl.minimum(W - 2 * wide, 2 * BW) * D).to(tl.float32)
        store_moments(part + group.to(tl.int64) * C + c, APART, cm, count, near, tl.sum(s1, 0), tl.sum(s2, 0))


@triton.jit
def _along_width(g0, t0, g1, t1, n: tl.constexpr, ODD: tl.constexpr):
    """What the windows of one row send to the even or odd voxels under them; n is the number of the row's first tap."""
    if ODD:
        v = tl.where(t0 == n + 2, g0, 0.0) + tl.where(t1 == n, g1, 0.0)
    else:
        v = tl.where(t0 == n + 1, g0, 0.0)
    return v


@triton.jit
def _along_height(g00, t00, g01, t01, g10, t10, g11, t11, n: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr):
    if HIGH:
        v = _along_width(g00, t00, g01, t01, n + 6, WIDE) + _along_width(g10, t10, g11, t11, n, WIDE)
    else:
        v = _along_width(g00, t00, g01, t01, n + 3, WIDE)
    return v


@triton.jit
def _window(g, tap, at_g, at_t, m):
    return tl.load(g + at_g, mask=m, other=0).to(tl.float32), tl.load(tap + at_t, mask=m, other=255).to(tl.int32)


@kernel
def unpool(
    g, tap, x, slopes, levels, gx, CB, WB, D, H, W, C, xb, xd, xh, xw, yb, yd, yh, yw,
    Do, Ho, Wo, gb, gd, gh, gw, tb, td, th, tw, BW: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Input gradients of the 2x2x2 voxels under each of a block of windows, each of which sees its neighbours behind it too."""
    pid = tl.program_id(0)
    c = (pid % CB) * BC + tl.arange(0, BC)
    cm = c < C
    q = pid // CB
    ow = ((q % WB) * BW + tl.arange(0, BW)).to(tl.int64)
    q = q // WB
    oh = (q % Ho).to(tl.int64)
    q = q // Ho
    od = (q % Do).to(tl.int64)
    b = (q // Do).to(tl.int64)
    m0 = (ow < Wo)[:, None] & cm[None, :]
    m1 = (ow + 1 < Wo)[:, None] & cm[None, :]
    h1 = oh + 1 < Ho
    d1 = od + 1 < Do
    ag = (b * gb + od * gd + oh * gh + ow * gw)[:, None] + c[None, :]
    at = (b * tb + od * td + oh * th + ow * tw)[:, None] + c[None, :]
    g000, t000 = _window(g, tap, ag, at, m0)
    g001, t001 = _window(g, tap, ag + gw, at + tw, m1)
    g010, t010 = _window(g, tap, ag + gh, at + th, m0 & h1)
    g011, t011 = _window(g, tap, ag + gh + gw, at + th + tw, m1 & h1)
    g100, t100 = _window(g, tap, ag + gd, at + td, m0 & d1)
    g101, t101 = _window(g, tap, ag + gd + gw, at + td + tw, m1 & d1)
    g110, t110 = _window(g, tap, ag + gd + gh, at + td + th, m0 & d1 & h1)
    g111, t111 = _window(g, tap, ag + gd + gh + gw, at + td + th + tw, m1 & d1 & h1)
    slope = tl.load(slopes + c, mask=cm, other=0)
    level = tl.load(levels + c, mask=cm, other=0)
    for p in tl.static_range(2):
        for i in tl.static_range(2):
            for j in tl.static_range(2):
                d = 2 * od + p
                h = 2 * oh + i
                w = 2 * ow + j
                m = ((w < W) & (h < H) & (d < D))[:, None] & cm[None, :]
                source = (b * xb + d * xd + h * xh + w * xw)[:, None] + c[None, :]
                v = slope[None, :] * tl.load(x + source, mask=m, other=0).to(tl.float32) + level[None, :]
                v += _along_height(g000, t000, g001, t001, g010, t010, g011, t011, 9 + 9 * p, i, j)
                if p == 1:
                    v += _along_height(g100, t100, g101, t101, g110, t110, g111, t111, 0, i, j)
                to = (b * yb + d * yd + h * yh + w * yw)[:, None] + c[None, :]
                tl.store(gx + to, v.to(gx.dtype.element_ty), mask=m)
