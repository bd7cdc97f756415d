// Convolutions in bfloat16 on processors that multiply it in vectors of AVX-512, and have no AMX.
//
// 3x3 ones with stride 1 and padding 1 by Winograd's F(2x2, 3x3): 16 multiplications where there were 36. Lavin and Gray 2016, "Fast
// algorithms for convolutional neural networks", Sec. 4.1: with tiles d of 4x4 pixels that overlap by two, kernels g of 3x3 and outputs
// of 2x2, Y = A'[(G g G') * (B' d B)]A, where * is a product of elements, and so, over channels, 16 matrix products. The gradient of the
// input is the same with the kernel turned round; that of the kernel is the transpose of the above: G'[sum over tiles of (B' d B) *
// (A Y A')]G. Transforms are sums of four and nine terms in float32; factors of products are bfloat16, their sums float32. With AMX a
// processor multiplies so much faster that the transforms would cost more than they save.
//
// Direct ones with few channels, as of the stem; and the stem in inference with all that follows up to the pooling: its output is the
// largest of all, and then is not even written.
//
// Loaded by native.py through ctypes, used by convolutions.py.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <omp.h>
#include "_exports.h"

typedef uint16_t bf16;

#if defined(__x86_64__) && defined(__GNUC__) && (defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10)

#include <cpuid.h>
#include <immintrin.h>

#define VECTORS __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define INLINE static inline __attribute__((always_inline)) VECTORS

static const i64 LANES = 16;      // float32 values of a vector
static const i64 BLOCK = 64;      // output channels of a pass: with 6 rows, 24 of the 32 registers hold sums
static const i64 ROWS = 6;
static const i64 POINTS = 16;     // of a transformed tile
static const i64 FEW_TILES = 96, CACHE = 384 << 10;  // transformed pixels of a thread stay in its second-level cache
static const i64 MANY_TILES = 512;
static const i64 STRETCH = 48;    // pixels of an output row whose sums stay in the first-level cache

static i64 padded(i64 channels) { return (channels + LANES - 1) / LANES * LANES; }
static i64 ceiling(i64 a, i64 b) { return (a + b - 1) / b; }

struct Freed {
    void operator()(void *memory) const { std::free(memory); }
};
template <typename T> struct Buffer : std::unique_ptr<T, Freed> {
    explicit Buffer(i64 count) : std::unique_ptr<T, Freed>((T *)std::aligned_alloc(64, ceiling(count * (i64)sizeof(T), 64) * 64)) {
        if (this->get()) return;
        // Of some hundred kilobytes; no exception may leave a parallel region.
        std::fputs("ctcovid: out of memory in a convolution.\n", stderr);
        std::abort();
    }
};

// Images of all slices d of volumes b, pixel by pixel: (B, H, W, D, C).
struct Image {
    i64 B, H, W, D, C;
    i64 rows() const { return (H + 1) / 2; }
    i64 columns() const { return (W + 1) / 2; }
    i64 tiles() const { return B * rows() * D * columns(); }
    i64 step() const { return D * C; }  // from pixel to pixel
    i64 at(i64 b, i64 h, i64 w, i64 d) const { return (((b * H + h) * W + w) * D + d) * C; }
};

struct Corner { i64 b, h, w, d; };  // of a tile's 2x2 output pixels
static Corner corner(const Image &image, i64 tile) {
    const i64 row = tile / image.columns(), rest = row / image.D;
    return {rest / image.rows(), 2 * (rest % image.rows()), 2 * (tile % image.columns()), row % image.D};
}

// ---- vectors ----

INLINE __mmask16 first_lanes(i64 count) { return count >= LANES ? (__mmask16)0xffff : (__mmask16)((1u << count) - 1); }
INLINE __m512 load(const bf16 *from, __mmask16 lanes) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, from)), 16));
}
INLINE __m256i rounded(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
// Two values in the halves of each lane, as the product of pairs takes them.
INLINE __m512i pair(__m512 low, __m512 high) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(rounded(low)), _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded(high)), 16));
}

// ---- transforms of 16 channels, written over the first rows and columns ----

// B' d B
INLINE void transform_input(__m512 (&d)[4][4]) {
    for (int i = 0; i < 4; i++) {
        const __m512 a = d[i][0], b = d[i][1], c = d[i][2], e = d[i][3];
        d[i][0] = a - c, d[i][1] = b + c, d[i][2] = c - b, d[i][3] = b - e;
    }
    for (int j = 0; j < 4; j++) {
        const __m512 a = d[0][j], b = d[1][j], c = d[2][j], e = d[3][j];
        d[0][j] = a - c, d[1][j] = b + c, d[2][j] = c - b, d[3][j] = b - e;
    }
}

// A Y A'
INLINE void transform_gradient(__m512 (&y)[4][4]) {
    for (int i = 0; i < 2; i++) {
        const __m512 a = y[i][0], b = y[i][1];
        y[i][1] = a + b, y[i][2] = a - b, y[i][3] = -b;
    }
    for (int j = 0; j < 4; j++) {
        const __m512 a = y[0][j], b = y[1][j];
        y[1][j] = a + b, y[2][j] = a - b, y[3][j] = -b;
    }
}

// A' m A
INLINE void transform_output(__m512 (&m)[4][4]) {
    for (int i = 0; i < 4; i++) {
        const __m512 a = m[i][0], b = m[i][1], c = m[i][2], e = m[i][3];
        m[i][0] = a + b + c, m[i][1] = b - c - e;
    }
    for (int j = 0; j < 2; j++) {
        const __m512 a = m[0][j], b = m[1][j], c = m[2][j], e = m[3][j];
        m[0][j] = a + b + c, m[1][j] = b - c - e;
    }
}

// G g G'
INLINE void transform_kernel(__m512 (&g)[4][4]) {
    const __m512 half = _mm512_set1_ps(0.5f);
    for (int i = 0; i < 3; i++) {
        const __m512 a = g[i][0], b = g[i][1], c = g[i][2], sum = (a + c) * half, middle = b * half;
        g[i][1] = sum + middle, g[i][2] = sum - middle, g[i][3] = c;
    }
    for (int j = 0; j < 4; j++) {
        const __m512 a = g[0][j], b = g[1][j], c = g[2][j], sum = (a + c) * half, middle = b * half;
        g[1][j] = sum + middle, g[2][j] = sum - middle, g[3][j] = c;
    }
}

// G' u G
INLINE void transform_back(__m512 (&u)[4][4]) {
    const __m512 half = _mm512_set1_ps(0.5f);
    for (int i = 0; i < 4; i++) {
        const __m512 a = u[i][0], b = u[i][1], c = u[i][2], e = u[i][3], sum = (b + c) * half;
        u[i][0] = a + sum, u[i][1] = (b - c) * half, u[i][2] = sum + e;
    }
    for (int j = 0; j < 3; j++) {
        const __m512 a = u[0][j], b = u[1][j], c = u[2][j], e = u[3][j], sum = (b + c) * half;
        u[0][j] = a + sum, u[1][j] = (b - c) * half, u[2][j] = sum + e;
    }
}

// The 4x4 pixels of a tile, zeros outside the image.
INLINE void read_input(const bf16 *x, const Image &image, const Corner &at, i64 c, __m512 (&d)[4][4]) {
    const __mmask16 lanes = first_lanes(image.C - c);
    const bf16 *first = x + image.at(at.b, at.h - 1, at.w - 1, at.d) + c;
    for (i64 i = 0; i < 4; i++)
        for (i64 j = 0; j < 4; j++) {
            const bool inside = (uint64_t)(at.h - 1 + i) < (uint64_t)image.H && (uint64_t)(at.w - 1 + j) < (uint64_t)image.W;
            d[i][j] = load(first + (i * image.W + j) * image.step(), inside ? lanes : (__mmask16)0);
        }
}

INLINE void read_gradient(const bf16 *g, const Image &image, const Corner &at, i64 c, __m512 (&y)[4][4]) {
    const __mmask16 lanes = first_lanes(image.C - c);
    const bf16 *first = g + image.at(at.b, at.h, at.w, at.d) + c;
    for (i64 i = 0; i < 2; i++)
        for (i64 j = 0; j < 2; j++)
            y[i][j] = load(first + (i * image.W + j) * image.step(), at.h + i < image.H && at.w + j < image.W ? lanes : (__mmask16)0);
}

// ---- matrix products of pairs: c[r][n] (+)= sum over lines, steps and both halves of a[r] * b[n] ----

struct Left { i64 row, step, line, lines; };  // distances in memory of the left factor's values, and how many lines there are

template <int R, int V>
INLINE void product_of(const bf16 *a, const Left &at, const bf16 *b, i64 step_b, i64 steps, float *c, i64 next, bool add) {
    __m512 sums[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sums[r][v] = add ? _mm512_loadu_ps(c + r * next + v * LANES) : _mm512_setzero_ps();
    for (i64 line = 0; line < at.lines; line++, a += at.line)
        for (i64 s = 0; s < steps; s++, b += step_b) {
            __m512bh right[V];
            for (int v = 0; v < V; v++) right[v] = (__m512bh)_mm512_loadu_si512(b + v * 2 * LANES);
            for (int r = 0; r < R; r++) {
                int two;
                std::memcpy(&two, a + r * at.row + s * at.step, sizeof two);
                const __m512bh left = (__m512bh)_mm512_set1_epi32(two);
                for (int v = 0; v < V; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], left, right[v]);
            }
        }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) _mm512_storeu_ps(c + r * next + v * LANES, sums[r][v]);
}

template <int V>
VECTORS static void product(const bf16 *a, i64 rows, const Left &at, const bf16 *b, i64 step_b, i64 steps, float *c, i64 next, bool add) {
    for (; rows >= ROWS; rows -= ROWS, a += ROWS * at.row, c += ROWS * next) product_of<ROWS, V>(a, at, b, step_b, steps, c, next, add);
    switch (rows) {
        case 5: product_of<5, V>(a, at, b, step_b, steps, c, next, add); break;
        case 4: product_of<4, V>(a, at, b, step_b, steps, c, next, add); break;
        case 3: product_of<3, V>(a, at, b, step_b, steps, c, next, add); break;
        case 2: product_of<2, V>(a, at, b, step_b, steps, c, next, add); break;
        case 1: product_of<1, V>(a, at, b, step_b, steps, c, next, add); break;
        default: break;
    }
}

typedef void (*Product)(const bf16 *, i64, const Left &, const bf16 *, i64, i64, float *, i64, bool);
static const Product PRODUCTS[] = {nullptr, product<1>, product<2>, product<3>, product<4>};

// Of N columns, the width of the block that begins at n, padded to whole vectors.
static i64 width(i64 N, i64 n) { return N - n >= BLOCK ? BLOCK : padded(N - n); }

// ---- kernels: [block of N][point][pair of K][N of the block][2] ----

// 16 x 16 channels of float32 kernels (O, 3, 3, I), for N = O and K = I, or, turned round, for N = I and K = O.
VECTORS static void pack_block(const float *w, i64 O, i64 I, bool turned, i64 n, i64 k, bf16 *u) {
    const i64 N = turned ? I : O, Kp = padded(turned ? O : I), start = n / BLOCK * BLOCK, wide = width(N, start);
    const __m512i apart = _mm512_setr_epi32(0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240);
    // Rows of 16 neighbours in memory, whichever of N and K these are.
    alignas(64) float block[9][LANES][LANES];
    const i64 o = turned ? k : n, i = turned ? n : k;
    for (i64 row = 0; row < LANES; row++)
        for (int tap = 0; tap < 9; tap++) {
            const __mmask16 lanes = o + row < O ? first_lanes(I - i) : (__mmask16)0;
            _mm512_store_ps(block[tap][row], _mm512_maskz_loadu_ps(lanes, w + ((o + row) * 9 + tap) * I + i));
        }
    for (int two = 0; two < LANES; two += 2) {
        __m512 g[2][4][4];
        for (int half = 0; half < 2; half++) {
            for (int tap = 0; tap < 9; tap++)
                g[half][tap / 3][tap % 3] = turned ? _mm512_load_ps(block[8 - tap][two + half])
                                                   : _mm512_i32gather_ps(apart, &block[tap][0][two + half], 4);
            transform_kernel(g[half]);
        }
        bf16 *to = u + POINTS * Kp * start + ((k + two) / 2 * wide + n - start) * 2;
        for (int point = 0; point < POINTS; point++)
            _mm512_storeu_si512(to + point * Kp * wide, pair(g[0][point / 4][point % 4], g[1][point / 4][point % 4]));
    }
}

static void pack_kernels(const float *w, i64 O, i64 I, bool turned, bf16 *u, int threads) {
    const i64 N = turned ? I : O, K = turned ? O : I;
#pragma omp parallel for num_threads(threads) collapse(2) schedule(static)
    for (i64 n = 0; n < N; n += LANES)
        for (i64 k = 0; k < K; k += LANES) pack_block(w, O, I, turned, n, k, u);
}

// ---- forward ----

VECTORS static void forward_tiles(const bf16 *x, const Image &in, i64 N, const bf16 *u, const float *bias, const bf16 *residual, bool relu, bf16 *y,
                                  i64 first, i64 last, bf16 *v, i64 next_v, float *m, i64 next_m) {
    const Image out = {in.B, in.H, in.W, in.D, N};
    const i64 Kp = padded(in.C), tiles = last - first;
    for (i64 t = 0; t < tiles; t++) {
        const Corner at = corner(in, first + t);
        for (i64 c = 0; c < in.C; c += LANES) {
            __m512 d[4][4];
            read_input(x, in, at, c, d);
            transform_input(d);
            for (int point = 0; point < POINTS; point++)
                _mm256_storeu_si256((__m256i *)(v + point * next_v + t * Kp + c), rounded(d[point / 4][point % 4]));
        }
    }
    for (i64 n = 0; n < N; n += BLOCK) {
        const i64 wide = width(N, n);
        const bf16 *kernels = u + POINTS * Kp * n;
        for (int point = 0; point < POINTS; point++)
            PRODUCTS[wide / LANES](v + point * next_v, tiles, {Kp, 2, 0, 1}, kernels + point * Kp * wide, 2 * wide, Kp / 2, m + point * next_m, wide,
                                   false);
        for (i64 t = 0; t < tiles; t++) {
            const Corner at = corner(in, first + t);
            for (i64 c = 0; c < wide && n + c < N; c += LANES) {
                const __mmask16 lanes = first_lanes(N - n - c);
                __m512 s[4][4];
                for (int point = 0; point < POINTS; point++) s[point / 4][point % 4] = _mm512_loadu_ps(m + point * next_m + t * wide + c);
                transform_output(s);
                const __m512 more = bias ? _mm512_maskz_loadu_ps(lanes, bias + n + c) : _mm512_setzero_ps();
                for (int i = 0; i < 2 && at.h + i < in.H; i++)
                    for (int j = 0; j < 2 && at.w + j < in.W; j++) {
                        const i64 to = out.at(at.b, at.h + i, at.w + j, at.d) + n + c;
                        __m512 value = s[i][j] + more;
                        if (residual) value = value + load(residual + to, lanes);
                        // In this order of its operands the maximum passes NaN on.
                        if (relu) value = _mm512_max_ps(_mm512_setzero_ps(), value);
                        _mm256_mask_storeu_epi16(y + to, lanes, rounded(value));
                    }
            }
        }
    }
}

static void forward(const bf16 *x, const Image &in, i64 N, const bf16 *u, const float *bias, const bf16 *residual, bool relu, bf16 *y, int threads) {
    const i64 Kp = padded(in.C), all = in.tiles();
    i64 most = CACHE / (POINTS * Kp * (i64)sizeof(bf16)) / ROWS * ROWS;
    most = most < ROWS ? ROWS : most > FEW_TILES ? FEW_TILES : most;
    // Every thread gets the same number of chunks.
    const i64 chunks = ceiling(all, most * threads) * threads;
    const i64 tiles = ceiling(ceiling(all, chunks), ROWS) * ROWS;
    // A vector more between the points: at a distance of a power of two they would all compete for the same cache lines.
    const i64 next_v = tiles * Kp + 2 * LANES, next_m = tiles * BLOCK + LANES;
#pragma omp parallel num_threads(threads)
    {
        Buffer<bf16> v(POINTS * next_v);
        Buffer<float> m(POINTS * next_m);
#pragma omp for schedule(dynamic)
        for (i64 chunk = 0; chunk < ceiling(all, tiles); chunk++) {
            const i64 first = chunk * tiles, last = first + tiles < all ? first + tiles : all;
            forward_tiles(x, in, N, u, bias, residual, relu, y, first, last, v.get(), next_v, m.get(), next_m);
        }
    }
}

// ---- gradient of the kernels ----

VECTORS static void two_tiles(const bf16 *x, const Image &image, i64 tile, i64 last, bool gradient, bf16 *to, i64 next) {
    for (i64 c = 0; c < image.C; c += LANES) {
        __m512 d[2][4][4];
        for (int half = 0; half < 2; half++) {
            if (tile + half >= last) {
                for (int point = 0; point < POINTS; point++) d[half][point / 4][point % 4] = _mm512_setzero_ps();
                continue;
            }
            const Corner at = corner(image, tile + half);
            if (gradient) {
                read_gradient(x, image, at, c, d[half]);
                transform_gradient(d[half]);
            } else {
                read_input(x, image, at, c, d[half]);
                transform_input(d[half]);
            }
        }
        for (int point = 0; point < POINTS; point++)
            _mm512_storeu_si512(to + point * next + 2 * c, pair(d[0][point / 4][point % 4], d[1][point / 4][point % 4]));
    }
}

VECTORS static void gradient_back(const float *sums, i64 next, i64 K, float *w) {
    for (i64 k = 0; k < K; k += LANES) {
        __m512 u[4][4];
        for (int point = 0; point < POINTS; point++) u[point / 4][point % 4] = _mm512_loadu_ps(sums + point * next + k);
        transform_back(u);
        for (int tap = 0; tap < 9; tap++) _mm512_mask_storeu_ps(w + tap * K + k, first_lanes(K - k), u[tap / 3][tap % 3]);
    }
}

// What the gradient works in: transformed pixels, transformed gradients, and the sums of their products, point by point.
struct Scratch {
    i64 tiles, next_v, next_z, next_sums;
    Scratch(const Image &in, i64 N) {
        const i64 all = in.tiles();
        tiles = all < MANY_TILES ? all + all % 2 : MANY_TILES;
        next_v = tiles * padded(in.C) + 2 * LANES, next_z = tiles * padded(N) + 2 * LANES, next_sums = N * padded(in.C);
    }
    i64 bytes() const { return POINTS * (next_sums * (i64)sizeof(float) + (next_v + next_z) * (i64)sizeof(bf16)); }
};

static void kernel_gradient(const bf16 *x, const bf16 *g, const Image &in, i64 N, float *w, void *scratch, int threads) {
    const Image out = {in.B, in.H, in.W, in.D, N};
    const Scratch size(in, N);
    const i64 Kp = padded(in.C), Np = padded(N), all = in.tiles(), tiles = size.tiles;
    const i64 next_v = size.next_v, next_z = size.next_z, next_sums = size.next_sums;
    float *sums = (float *)scratch;
    bf16 *v = (bf16 *)(sums + POINTS * next_sums), *z = v + POINTS * next_v;
    const i64 blocks = ceiling(in.C, BLOCK);
#pragma omp parallel num_threads(threads)
    for (i64 first = 0; first < all; first += tiles) {
        const i64 last = first + tiles < all ? first + tiles : all, pairs = ceiling(last - first, 2);
#pragma omp for schedule(static)
        for (i64 p = 0; p < pairs; p++) {
            two_tiles(x, in, first + 2 * p, last, false, v + p * 2 * Kp, next_v);
            two_tiles(g, out, first + 2 * p, last, true, z + p * 2 * Np, next_z);
        }
#pragma omp for schedule(static) collapse(2)
        for (i64 point = 0; point < POINTS; point++)
            for (i64 block = 0; block < blocks; block++) {
                const i64 k = block * BLOCK, wide = width(in.C, k);
                PRODUCTS[wide / LANES](z + point * next_z, N, {2, 2 * Np, 0, 1}, v + point * next_v + 2 * k, 2 * Kp, pairs,
                                       sums + point * next_sums + k, Kp, first > 0);
            }
    }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 n = 0; n < N; n++) gradient_back(sums + n * Kp, next_sums, in.C, w + n * 9 * in.C);
}

// ---- few channels: of each row of the kernel, what it looks at is one run of neighbours in memory ----

// A square kernel for images x of (B, H, W, C). Kernels: [block of N][row][pair of neighbours][N of the block][2].
struct Few {
    i64 B, H, W, C, side, stride, padding, N;
    i64 rows() const { return (H + 2 * padding - side) / stride + 1; }
    i64 columns() const { return (W + 2 * padding - side) / stride + 1; }
    i64 run() const { return side * C; }
    i64 pitch() const { return (W + 2 * padding) * C + 2; }  // of rows with their padding
};

// The rows that the kernel looks at for row h of the output, with zeros for the padding.
static void look_at(const bf16 *x, const Few &few, i64 b, i64 h, bf16 *lines) {
    const i64 top = h * few.stride - few.padding, width = few.W * few.C;
    std::memset(lines, 0, few.side * few.pitch() * sizeof(bf16));
    for (i64 i = 0; i < few.side; i++)
        if (top + i >= 0 && top + i < few.H)
            std::memcpy(lines + i * few.pitch() + few.padding * few.C, x + (b * few.H + top + i) * width, width * sizeof(bf16));
}

// Every NaN becomes the one whose bits are larger than those of any number: pooling compares bits.
INLINE __m256i comparable(__m512 x) {
    return rounded(_mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_ps(__builtin_nanf(""))));
}

// Row h of the output of image b, to pixels that lie `step` apart.
VECTORS static void few_row(const bf16 *x, const Few &few, const bf16 *u, const float *bias, bool relu, i64 b, i64 h, bf16 *lines, float *sums, bf16 *y,
                            i64 step) {
    const i64 pairs = ceiling(few.run(), 2), columns = few.columns(), stride = few.stride * few.C;
    look_at(x, few, b, h, lines);
    for (i64 n = 0; n < few.N; n += BLOCK) {
        const i64 wide = width(few.N, n);
        for (i64 w = 0; w < columns; w += STRETCH) {
            const i64 count = columns - w < STRETCH ? columns - w : STRETCH;
            PRODUCTS[wide / LANES](lines + w * stride, count, {stride, 2, few.pitch(), few.side}, u + n * few.side * pairs * 2, 2 * wide, pairs, sums,
                                   wide, false);
            for (i64 c = 0; c < wide; c += LANES) {
                const __mmask16 lanes = first_lanes(few.N - n - c);
                const __m512 more = bias ? _mm512_maskz_loadu_ps(lanes, bias + n + c) : _mm512_setzero_ps();
                for (i64 t = 0; t < count; t++) {
                    __m512 value = _mm512_loadu_ps(sums + t * wide + c) + more;
                    if (relu) value = _mm512_max_ps(_mm512_setzero_ps(), value);
                    _mm256_mask_storeu_epi16(y + (w + t) * step + n + c, lanes, comparable(value));
                }
            }
        }
    }
}

// Images are slices of volumes: y is (B / slices, H', W', slices, N).
static void few_forward(const bf16 *x, const Few &few, i64 slices, const bf16 *u, const float *bias, bf16 *y, int threads) {
    const Image out = {few.B / slices, few.rows(), few.columns(), slices, few.N};
#pragma omp parallel num_threads(threads)
    {
        Buffer<bf16> lines(few.side * few.pitch());
        Buffer<float> sums(STRETCH * BLOCK);
#pragma omp for schedule(dynamic, 4)
        for (i64 r = 0; r < few.B * out.H; r++) {
            // Slices of one row beside each other, whose pixels are neighbours.
            const i64 d = r % slices, h = r / slices % out.H, b = r / slices / out.H;
            few_row(x, few, u, bias, false, b * slices + d, h, lines.get(), sums.get(), y + out.at(b, h, 0, d), out.step());
        }
    }
}

// Sums over a row of g times what the kernel looked at: (N, taps), of which those of two pixels are multiplied at a time.
VECTORS static void few_gradient_row(const bf16 *g, const Few &few, i64 step, bf16 *lines, bf16 *taps, bf16 *looked, bf16 *given, float *sums) {
    const i64 columns = few.columns(), pairs = ceiling(columns, 2), all = few.side * few.run(), Tp = padded(all), Np = padded(few.N);
    for (i64 p = 0; p < pairs; p++) {
        for (i64 half = 0; half < 2; half++) {
            bf16 *to = taps + half * Tp;
            if (2 * p + half >= columns) {
                std::memset(to, 0, all * sizeof(bf16));
                continue;
            }
            for (i64 i = 0; i < few.side; i++)
                std::memcpy(to + i * few.run(), lines + i * few.pitch() + (2 * p + half) * few.stride * few.C, few.run() * sizeof(bf16));
        }
        const __mmask16 everything = 0xffff;
        for (i64 t = 0; t < Tp; t += LANES)
            _mm512_storeu_si512(looked + (p * Tp + t) * 2, pair(load(taps + t, everything), load(taps + Tp + t, everything)));
        const bf16 *first = g + 2 * p * step;
        for (i64 n = 0; n < few.N; n += LANES) {
            const __mmask16 lanes = first_lanes(few.N - n), second = 2 * p + 1 < columns ? lanes : (__mmask16)0;
            _mm512_storeu_si512(given + (p * Np + n) * 2, pair(load(first + n, lanes), load(first + step + n, second)));
        }
    }
    for (i64 t = 0; t < Tp; t += BLOCK) {
        const i64 wide = width(Tp, t);
        PRODUCTS[wide / LANES](given, few.N, {2, 2 * Np, 0, 1}, looked + 2 * t, 2 * Tp, pairs, sums + t, Tp, true);
    }
}

static void few_gradient(const bf16 *x, const bf16 *g, const Few &few, i64 slices, float *w, int threads) {
    const Image out = {few.B / slices, few.rows(), few.columns(), slices, few.N};
    const i64 all = few.side * few.run(), Tp = padded(all), Np = padded(few.N), pairs = ceiling(few.columns(), 2), size = few.N * Tp;
    Buffer<float> per_thread(threads * size);
    std::memset(per_thread.get(), 0, threads * size * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        Buffer<bf16> lines(few.side * few.pitch()), taps(2 * Tp), looked(pairs * Tp * 2), given(pairs * Np * 2);
        std::memset(taps.get(), 0, 2 * Tp * sizeof(bf16));
        float *sums = per_thread.get() + omp_get_thread_num() * size;
#pragma omp for schedule(static)
        for (i64 r = 0; r < few.B * out.H; r++) {
            const i64 d = r % slices, h = r / slices % out.H, b = r / slices / out.H;
            look_at(x, few, b * slices + d, h, lines.get());
            few_gradient_row(g + out.at(b, h, 0, d), few, out.step(), lines.get(), taps.get(), looked.get(), given.get(), sums);
        }
    }
    for (i64 n = 0; n < few.N; n++)
        for (i64 t = 0; t < all; t++) {
            float sum = 0.0f;
            for (i64 thread = 0; thread < threads; thread++) sum += per_thread.get()[thread * size + n * Tp + t];
            w[n * all + t] = sum;
        }
}

// ---- the stem in inference, with bias, ReLU and 3x3x3 max pooling, of which only what was pooled is written ----

// The largest of each 3x3 of columns and slices of a row, (W', depth * C) to (ceil(W' / 2), ceil(depth / 2) * C). Behind a ReLU bfloat16
// values have the order of their bits.
VECTORS static void pool_row(const bf16 *row, i64 columns, i64 depth, i64 C, bf16 *to) {
    for (i64 w = 0; w < columns; w += 2)
        for (i64 d = 0; d < depth; d += 2)
            for (i64 c = 0; c < C; c += LANES, to += LANES) {
                __m256i best = _mm256_setzero_si256();
                for (i64 i = w > 0 ? w - 1 : 0; i <= w + 1 && i < columns; i++)
                    for (i64 j = d > 0 ? d - 1 : 0; j <= d + 1 && j < depth; j++)
                        best = _mm256_max_epi16(best, _mm256_loadu_si256((const __m256i *)(row + (i * depth + j) * C + c)));
                _mm256_storeu_si256((__m256i *)to, best);
            }
}

VECTORS static void largest_of_rows(const bf16 *a, const bf16 *b, const bf16 *c, i64 count, bf16 *to) {
    for (i64 i = 0; i < count; i += LANES) {
        const __m256i some = _mm256_max_epi16(_mm256_loadu_si256((const __m256i *)(a + i)), _mm256_loadu_si256((const __m256i *)(b + i)));
        _mm256_storeu_si256((__m256i *)(to + i), _mm256_max_epi16(some, _mm256_loadu_si256((const __m256i *)(c + i))));
    }
}

// N are depths times channels. A pooled row needs three rows of the convolution; the last of them serves the next one as well.
static void few_pooled(const bf16 *x, const Few &few, i64 depth, const bf16 *u, const float *bias, bf16 *y, int threads) {
    const i64 C = few.N / depth, rows = ceiling(few.rows(), 2), pooled = ceiling(few.columns(), 2) * ceiling(depth, 2) * C;
#pragma omp parallel num_threads(threads)
    {
        Buffer<bf16> lines(few.side * few.pitch()), row(few.columns() * few.N), kept(3 * pooled);
        Buffer<float> sums(STRETCH * BLOCK);
        bf16 *above = kept.get(), *middle = above + pooled, *below = middle + pooled;
        const auto make = [&](i64 b, i64 h, bf16 *to) {
            if (h >= 0 && h < few.rows()) {
                few_row(x, few, u, bias, true, b, h, lines.get(), sums.get(), row.get(), few.N);
                pool_row(row.get(), few.columns(), depth, C, to);
            } else {
                // Outside, zeros never win.
                std::memset(to, 0, pooled * sizeof(bf16));
            }
        };
        const i64 all = few.B * rows, crew = omp_get_num_threads(), mine = omp_get_thread_num();
        const i64 first = all * mine / crew, last = all * (mine + 1) / crew;
        for (i64 r = first; r < last; r++) {
            const i64 b = r / rows, h = r % rows * 2;
            if (r == first || h == 0) make(b, h - 1, above);
            make(b, h, middle);
            make(b, h + 1, below);
            largest_of_rows(above, middle, below, pooled, y + r * pooled);
            std::swap(above, below);
        }
    }
}

static bool multiplies_bfloat16_in_vectors() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq")) return false;
    const bool amx = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
    return __builtin_cpu_supports("avx512vl") && !amx;
}

EXPORT(int, convolutions_supported, void) { return multiplies_bfloat16_in_vectors(); }
EXPORT(void, winograd_pack, const float *w, i64 O, i64 I, int turned, bf16 *u, int threads) { pack_kernels(w, O, I, turned, u, threads); }
EXPORT(void, winograd_forward, const bf16 *x, i64 B, i64 H, i64 W, i64 D, i64 K, i64 N, const bf16 *u, const float *bias,
       const bf16 *residual, int relu, bf16 *y, int threads) {
    forward(x, {B, H, W, D, K}, N, u, bias, residual, relu, y, threads);
}
EXPORT(void, winograd_gradient, const bf16 *x, const bf16 *g, i64 B, i64 H, i64 W, i64 D, i64 K, i64 N, float *w, void *scratch,
       int threads) {
    kernel_gradient(x, g, {B, H, W, D, K}, N, w, scratch, threads);
}
EXPORT(i64, winograd_scratch, i64 B, i64 H, i64 W, i64 D, i64 K, i64 N) { return Scratch({B, H, W, D, K}, N).bytes(); }
EXPORT(void, few_channels_forward, const bf16 *x, i64 B, i64 H, i64 W, i64 C, i64 side, i64 stride, i64 padding, i64 N, i64 slices,
       const bf16 *u, const float *bias, bf16 *y, int threads) {
    few_forward(x, {B, H, W, C, side, stride, padding, N}, slices, u, bias, y, threads);
}
EXPORT(void, few_channels_gradient, const bf16 *x, const bf16 *g, i64 B, i64 H, i64 W, i64 C, i64 side, i64 stride, i64 padding, i64 N,
       i64 slices, float *w, int threads) {
    few_gradient(x, g, {B, H, W, C, side, stride, padding, N}, slices, w, threads);
}
EXPORT(void, stem_and_pool, const bf16 *x, i64 B, i64 H, i64 W, i64 C, i64 side, i64 stride, i64 padding, i64 N, i64 depth,
       const bf16 *u, const float *bias, bf16 *y, int threads) {
    few_pooled(x, {B, H, W, C, side, stride, padding, N}, depth, u, bias, y, threads);
}

#else

EXPORT(int, convolutions_supported, void) { return 0; }

#endif
