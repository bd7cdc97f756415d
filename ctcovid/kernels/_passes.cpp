// Batch norm, ReLU, residual sum and max pooling of a network's training step, each as one pass over memory.
//
// Convolutions are the libraries' work. Between two of them torch makes a pass each for the mean, the variance, the normalised values,
// the residual sum and the ReLU, and as many on the way back; on a CPU these take longer than the convolutions. All activations are
// seen as rows of C channels, whatever the order of the other dimensions, in float32 or bfloat16, with all sums in float32 blocks that
// are added up in float64. Loaded by native.py through ctypes; without a compiled library, torch's own operations do the same.

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>
#include <omp.h>
#include "_exports.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define KERNEL template <typename T> __attribute__((noinline, target_clones("avx512f", "avx2", "default")))
#else
#define KERNEL template <typename T>
#endif
#define INLINE static inline __attribute__((always_inline))

struct bf16 { uint16_t bits; };

INLINE float load(float x) { return x; }
INLINE float load(bf16 x) {
    uint32_t u = (uint32_t)x.bits << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
INLINE void store(float *to, float f) { *to = f; }
INLINE void store(bf16 *to, float f) {
    uint32_t u;
    std::memcpy(&u, &f, 4);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    to->bits = (uint16_t)((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// Rows of a block stay in the first-level cache for a second look, and float32 sums over them lose nothing.
static const i64 BLOCK = 128;

struct Share { i64 first, last; };
static Share share(i64 count, int thread, int threads) {
    return {count * thread / threads, count * (thread + 1) / threads};
}

// ---- mean and sum of squared deviations of blocks, merged after Chan et al. 1979 ----

KERNEL static void block_moments(const T *__restrict x, i64 rows, i64 stride, i64 C, float *__restrict mean, float *__restrict squares) {
    for (i64 c = 0; c < C; c++) mean[c] = squares[c] = 0.0f;
    for (i64 r = 0; r < rows; r++) {
        const T *row = x + r * stride;
        for (i64 c = 0; c < C; c++) mean[c] += load(row[c]);
    }
    const float per_row = 1.0f / (float)rows;
    for (i64 c = 0; c < C; c++) mean[c] *= per_row;
    for (i64 r = 0; r < rows; r++) {
        const T *row = x + r * stride;
        for (i64 c = 0; c < C; c++) {
            const float d = load(row[c]) - mean[c];
            squares[c] += d * d;
        }
    }
}

struct Moments {
    double count = 0;
    std::vector<double> mean, squares;
    explicit Moments(i64 C) : mean(C, 0.0), squares(C, 0.0) {}
    template <typename M> void merge(double n, const M *other_mean, const M *other_squares) {
        if (n == 0) return;
        const double total = count + n, share = n / total, weight = count * share;
        for (size_t c = 0; c < mean.size(); c++) {
            const double d = (double)other_mean[c] - mean[c];
            mean[c] += d * share;
            squares[c] += (double)other_squares[c] + d * d * weight;
        }
        count = total;
    }
};

static void finish(std::vector<Moments> &per_thread, float *mean, float *var) {
    Moments all = per_thread[0];
    for (size_t t = 1; t < per_thread.size(); t++) all.merge(per_thread[t].count, per_thread[t].mean.data(), per_thread[t].squares.data());
    for (size_t c = 0; c < all.mean.size(); c++) {
        mean[c] = (float)all.mean[c];
        var[c] = (float)(all.squares[c] / all.count);
    }
}

template <typename T> static void moments(const T *x, i64 rows, i64 C, float *mean, float *var, int threads) {
    std::vector<Moments> per_thread(threads, Moments(C));
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
        std::vector<float> m(C), s(C);
        const Share mine = share(rows, thread, omp_get_num_threads());
        for (i64 r = mine.first; r < mine.last; r += BLOCK) {
            const i64 n = mine.last - r < BLOCK ? mine.last - r : BLOCK;
            block_moments(x + r * C, n, C, C, m.data(), s.data());
            per_thread[thread].merge((double)n, m.data(), s.data());
        }
    }
    finish(per_thread, mean, var);
}

// ---- x * scale + shift, plus a residual that may be coarser and have fewer channels, then ReLU ----

template <typename T>
INLINE void normalise_row(const T *__restrict x, const T *__restrict residual, i64 C, i64 Cr, const float *__restrict scale,
                          const float *__restrict shift, int relu, T *__restrict out) {
    const float floor = relu ? 0.0f : -std::numeric_limits<float>::infinity();
    i64 c = 0;
    if (residual)
        for (; c < Cr; c++) {
            const float v = load(x[c]) * scale[c] + shift[c] + load(residual[c]);
            store(out + c, v < floor ? floor : v);
        }
    for (; c < C; c++) {
        const float v = load(x[c]) * scale[c] + shift[c];
        store(out + c, v < floor ? floor : v);
    }
}

struct Grid { i64 size[4], stride[4]; };  // sizes of the outer dimensions in memory order, and the residual's strides along them

KERNEL static void normalise_rows(const T *x, const T *residual, const Grid *grid, i64 C, i64 Cr, const float *scale, const float *shift, int relu,
                           T *out, i64 first, i64 last) {
    for (i64 r = first; r < last; r++) {
        const T *from = nullptr;
        if (residual) {
            const i64 l = r % grid->size[3], rest = r / grid->size[3], k = rest % grid->size[2], more = rest / grid->size[2];
            const i64 j = more % grid->size[1], i = more / grid->size[1];
            from = residual + i * grid->stride[0] + j * grid->stride[1] + k * grid->stride[2] + l * grid->stride[3];
        }
        normalise_row(x + r * C, from, C, Cr, scale, shift, relu, out + r * C);
    }
}

// ---- backward: g is the gradient behind the ReLU; its mask is the sign of the output, read or computed again ----

KERNEL static void reduce_block(const T *__restrict g, const T *__restrict x, const T *__restrict z, i64 rows, i64 C, const float *__restrict scale,
                         const float *__restrict shift, const float *__restrict mean, int relu, float *__restrict sum, float *__restrict dot) {
    for (i64 c = 0; c < C; c++) sum[c] = dot[c] = 0.0f;
    if (relu && z) {
        for (i64 r = 0; r < rows; r++)
            for (i64 c = 0; c < C; c++) {
                const float passed = load(g[r * C + c]), v = load(z[r * C + c]) > 0.0f ? passed : 0.0f;
                sum[c] += v;
                dot[c] += v * (load(x[r * C + c]) - mean[c]);
            }
    } else if (relu) {
        for (i64 r = 0; r < rows; r++)
            for (i64 c = 0; c < C; c++) {
                const float value = load(x[r * C + c]);
                const float passed = load(g[r * C + c]), v = value * scale[c] + shift[c] > 0.0f ? passed : 0.0f;
                sum[c] += v;
                dot[c] += v * (value - mean[c]);
            }
    } else {
        for (i64 r = 0; r < rows; r++)
            for (i64 c = 0; c < C; c++) {
                const float v = load(g[r * C + c]);
                sum[c] += v;
                dot[c] += v * (load(x[r * C + c]) - mean[c]);
            }
    }
}

KERNEL static void backward_rows(const T *__restrict g, const T *__restrict x, const T *__restrict z, i64 C, const float *__restrict scale,
                          const float *__restrict shift, int relu, const float *__restrict a, const float *__restrict b,
                          const float *__restrict k, T *__restrict gx, T *__restrict gr, i64 first, i64 last) {
    for (i64 r = first; r < last; r++) {
        const i64 o = r * C;
        if (relu && z) {
            for (i64 c = 0; c < C; c++) {
                const float passed = load(g[o + c]), v = load(z[o + c]) > 0.0f ? passed : 0.0f;
                store(gx + o + c, a[c] * v + b[c] * load(x[o + c]) + k[c]);
            }
            if (gr)
                for (i64 c = 0; c < C; c++) {
                    const float passed = load(g[o + c]);
                    store(gr + o + c, load(z[o + c]) > 0.0f ? passed : 0.0f);
                }
        } else if (relu) {
            for (i64 c = 0; c < C; c++) {
                const float value = load(x[o + c]);
                const float passed = load(g[o + c]), v = value * scale[c] + shift[c] > 0.0f ? passed : 0.0f;
                store(gx + o + c, a[c] * v + b[c] * value + k[c]);
            }
        } else {
            for (i64 c = 0; c < C; c++) store(gx + o + c, a[c] * load(g[o + c]) + b[c] * load(x[o + c]) + k[c]);
        }
    }
}

// ---- 3x3x3 max pooling, stride 2, padding 1, on raw convolution outputs ----

struct Strides { i64 B, D, H, W, C, b, d, h, w; };  // sizes, and strides in elements; channels are adjacent

static const i64 LANES = 64;

// One row (b, oh) of outputs. The largest of sign * x wins, the first in order of depth, height, width among equals, as in torch.
KERNEL static void pool_row(const T *x, const Strides *in, const float *__restrict sign, T *out, uint8_t *tap, const Strides *to, i64 b, i64 oh) {
    float best[LANES];
    int32_t where[LANES];
    for (i64 ow = 0; ow < to->W; ow++)
        for (i64 od = 0; od < to->D; od++)
            for (i64 c0 = 0; c0 < in->C; c0 += LANES) {
                const i64 n = in->C - c0 < LANES ? in->C - c0 : LANES;
                for (i64 c = 0; c < n; c++) best[c] = -std::numeric_limits<float>::infinity(), where[c] = 0;
                bool first = true;
                for (int kd = 0; kd < 3; kd++)
                    for (int kh = 0; kh < 3; kh++)
                        for (int kw = 0; kw < 3; kw++) {
                            const i64 d = 2 * od - 1 + kd, h = 2 * oh - 1 + kh, w = 2 * ow - 1 + kw;
                            if (d < 0 || d >= in->D || h < 0 || h >= in->H || w < 0 || w >= in->W) continue;
                            const T *__restrict from = x + b * in->b + d * in->d + h * in->h + w * in->w + c0;
                            const float *__restrict s = sign + c0;
                            const int32_t number = kd * 9 + kh * 3 + kw;
                            if (first) {
                                for (i64 c = 0; c < n; c++) best[c] = load(from[c]) * s[c], where[c] = number;
                                first = false;
                                continue;
                            }
                            for (i64 c = 0; c < n; c++) {
                                const float v = load(from[c]) * s[c];
                                const bool wins = (v > best[c]) | (v != v);
                                best[c] = wins ? v : best[c];
                                where[c] = wins ? number : where[c];
                            }
                        }
                const i64 o = b * to->b + od * to->d + oh * to->h + ow * to->w + c0;
                for (i64 c = 0; c < n; c++) store(out + o + c, best[c] * sign[c0 + c]);
                for (i64 c = 0; c < n; c++) tap[o + c] = (uint8_t)where[c];
            }
}

// One row (b, h) of input gradients: what the windows that chose a voxel send back, plus slope * x + level of the batch norm.
KERNEL static void unpool_row(const T *__restrict g, const uint8_t *__restrict tap, const Strides *to, const T *__restrict x, const Strides *in,
                       const float *__restrict slope, const float *__restrict level, T *__restrict gx, i64 b, i64 h) {
    float sum[LANES];
    for (i64 w = 0; w < in->W; w++)
        for (i64 d = 0; d < in->D; d++)
            for (i64 c0 = 0; c0 < in->C; c0 += LANES) {
                const i64 n = in->C - c0 < LANES ? in->C - c0 : LANES;
                const i64 at = b * in->b + d * in->d + h * in->h + w * in->w + c0;
                for (i64 c = 0; c < n; c++) sum[c] = slope[c0 + c] * load(x[at + c]) + level[c0 + c];
                for (i64 od = d / 2; od <= (d + 1) / 2 && od < to->D; od++)
                    for (i64 oh = h / 2; oh <= (h + 1) / 2 && oh < to->H; oh++)
                        for (i64 ow = w / 2; ow <= (w + 1) / 2 && ow < to->W; ow++) {
                            const i64 o = b * to->b + od * to->d + oh * to->h + ow * to->w + c0;
                            const uint8_t number = (uint8_t)((d - 2 * od + 1) * 9 + (h - 2 * oh + 1) * 3 + (w - 2 * ow + 1));
                            for (i64 c = 0; c < n; c++) {
                                const float sent = load(g[o + c]);
                                sum[c] += tap[o + c] == number ? sent : 0.0f;
                            }
                        }
                for (i64 c = 0; c < n; c++) store(gx + at + c, sum[c]);
            }
}

// ---- the passes, shared among threads ----

template <typename T>
static void normalise(const T *x, const T *residual, const Grid *grid, i64 rows, i64 C, i64 Cr, const float *scale, const float *shift,
                      int relu, T *out, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Share mine = share(rows, omp_get_thread_num(), omp_get_num_threads());
        normalise_rows(x, residual, grid, C, Cr, scale, shift, relu, out, mine.first, mine.last);
    }
}

template <typename T>
static void reduce(const T *g, const T *x, const T *z, i64 rows, i64 C, const float *scale, const float *shift, const float *mean, int relu,
                   float *sum, float *dot, int threads) {
    std::vector<double> sums(threads * C, 0.0), dots(threads * C, 0.0);
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
        const Share mine = share(rows, thread, omp_get_num_threads());
        std::vector<float> s(C), p(C);
        for (i64 r = mine.first; r < mine.last; r += BLOCK) {
            const i64 n = mine.last - r < BLOCK ? mine.last - r : BLOCK;
            reduce_block(g + r * C, x + r * C, z ? z + r * C : z, n, C, scale, shift, mean, relu, s.data(), p.data());
            for (i64 c = 0; c < C; c++) sums[thread * C + c] += s[c], dots[thread * C + c] += p[c];
        }
    }
    for (i64 c = 0; c < C; c++) {
        double s = 0, p = 0;
        for (int t = 0; t < threads; t++) s += sums[t * C + c], p += dots[t * C + c];
        sum[c] = (float)s, dot[c] = (float)p;
    }
}

template <typename T>
static void backward(const T *g, const T *x, const T *z, i64 rows, i64 C, const float *scale, const float *shift, int relu, const float *a,
                     const float *b, const float *k, T *gx, T *gr, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Share mine = share(rows, omp_get_thread_num(), omp_get_num_threads());
        backward_rows(g, x, z, C, scale, shift, relu, a, b, k, gx, gr, mine.first, mine.last);
    }
}

// Pools, and in the same pass computes mean and variance of all that it reads, unless mean is null.
template <typename T>
static void pool(const T *x, const Strides *in, const float *sign, T *out, uint8_t *tap, const Strides *to, float *mean, float *var,
                 int threads) {
    std::vector<Moments> per_thread(threads, Moments(in->C));
#pragma omp parallel num_threads(threads)
    {
        const int thread = omp_get_thread_num();
        const Share mine = share(to->B * to->H, thread, omp_get_num_threads());
        std::vector<float> m(in->C), s(in->C);
        for (i64 r = mine.first; r < mine.last; r++) {
            const i64 b = r / to->H, oh = r % to->H;
            for (i64 h = 2 * oh; mean && h < 2 * oh + 2 && h < in->H; h++)
                for (i64 d = 0; d < in->D; d++)
                    for (i64 w = 0; w < in->W; w += BLOCK) {
                        const i64 n = in->W - w < BLOCK ? in->W - w : BLOCK;
                        block_moments(x + b * in->b + d * in->d + h * in->h + w * in->w, n, in->w, in->C, m.data(), s.data());
                        per_thread[thread].merge((double)n, m.data(), s.data());
                    }
            pool_row(x, in, sign, out, tap, to, b, oh);
        }
    }
    if (mean) finish(per_thread, mean, var);
}

template <typename T>
static void unpool(const T *g, const uint8_t *tap, const Strides *to, const T *x, const Strides *in, const float *slope, const float *level,
                   T *gx, int threads) {
#pragma omp parallel num_threads(threads)
    {
        const Share mine = share(in->B * in->H, omp_get_thread_num(), omp_get_num_threads());
        for (i64 r = mine.first; r < mine.last; r++) unpool_row(g, tap, to, x, in, slope, level, gx, r / in->H, r % in->H);
    }
}

// ---- exported, once for each type: native.py holds the same prototypes, with T for the type ----

static_assert(sizeof(Grid) == 8 * sizeof(i64) && sizeof(Strides) == 9 * sizeof(i64), "native.py passes arrays of numbers");

#define EXPORTS(T, type)                                                                                                                   \
    EXPORT(void, moments_##type, const T *x, i64 rows, i64 C, float *mean, float *var, int threads) {                                      \
        moments(x, rows, C, mean, var, threads);                                                                                           \
    }                                                                                                                                      \
    EXPORT(void, normalise_##type, const T *x, const T *residual, const i64 grid[8], i64 rows, i64 C, i64 Cr, const float *scale,          \
           const float *shift, int relu, T *out, int threads) {                                                                            \
        normalise(x, residual, (const Grid *)grid, rows, C, Cr, scale, shift, relu, out, threads);                                         \
    }                                                                                                                                      \
    EXPORT(void, reduce_##type, const T *g, const T *x, const T *z, i64 rows, i64 C, const float *scale, const float *shift,               \
           const float *mean, int relu, float *sum, float *dot, int threads) {                                                             \
        reduce(g, x, z, rows, C, scale, shift, mean, relu, sum, dot, threads);                                                             \
    }                                                                                                                                      \
    EXPORT(void, backward_##type, const T *g, const T *x, const T *z, i64 rows, i64 C, const float *scale, const float *shift, int relu,   \
           const float *a, const float *b, const float *k, T *gx, T *gr, int threads) {                                                    \
        backward(g, x, z, rows, C, scale, shift, relu, a, b, k, gx, gr, threads);                                                          \
    }                                                                                                                                      \
    EXPORT(void, pool_##type, const T *x, const i64 in[9], const float *sign, T *out, uint8_t *tap, const i64 to[9], float *mean,          \
           float *var, int threads) {                                                                                                      \
        pool(x, (const Strides *)in, sign, out, tap, (const Strides *)to, mean, var, threads);                                             \
    }                                                                                                                                      \
    EXPORT(void, unpool_##type, const T *g, const uint8_t *tap, const i64 to[9], const T *x, const i64 in[9], const float *slope,          \
           const float *level, T *gx, int threads) {                                                                                       \
        unpool(g, tap, (const Strides *)to, x, (const Strides *)in, slope, level, gx, threads);                                            \
    }

EXPORTS(float, float32)
EXPORTS(bf16, bfloat16)
