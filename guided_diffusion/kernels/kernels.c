/* What most of a UNet's time on a CPU goes into: 3x3 convolutions, products of matrices, and normalisations.

   Direct convolution in float32 already runs at a core's peak, so fewer multiplications are the one way to be much
   faster. Winograd's minimal filtering F(4x4, 3x3) (Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks",
   2016, arXiv:1509.09308, section 4.3) makes 4x4 outputs of a 6x6 tile of inputs by 36 multiplications, not 144:

       Y = A^T [ (G g G^T) * (B^T d B) ] A           for each pair of channels, summed over the inputs' channels

   which for all tiles together is 36 products of matrices. Both gradients have the same form: that of the input is a
   convolution by the filters turned round, that of the filters is G^T [ sum over tiles (B^T d B) * (A dY A^T) ] G.

   Images are float32 [N, H, W, C], filters [O, C, 3, 3]; H and W are multiples of 4, the padding is 1. The work is cut
   by the number of threads, but how an output is computed depends neither on that nor on the other images of a batch.

   This file includes itself once for each instruction set: what stands below LANES is compiled anew with vectors of
   that many floats, and its functions get the suffix of the set. Nothing runs before `supports` was asked. */

#ifndef LANES

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

#define PASTE2(a, b) a##_##b
#define PASTE(a, b) PASTE2(a, b)
#define NAME(name) PASTE(name, SUFFIX)
#define TARGETED __attribute__((target(INSTRUCTIONS)))
#define HELPER static inline __attribute__((always_inline)) TARGETED
#define LOCAL static TARGETED
#define EXPORTED __attribute__((visibility("default"))) TARGETED
#define TILE 36 /* values of a transformed tile */
/* floats between the 36 matrices beyond their size: with a power of 2 between them they would share a few cache sets */
#define SKEW 16
/* Bytes of transformed tiles worked on at once: of a core's second cache, or, where that cannot hold the transformed
   filters, of the last one, for then every block of tiles reads all filters from there or from main memory. */
#define CACHE (768 * 1024)
#define LAST_CACHE (12 * 1024 * 1024)
#define FILTERS (4 * 1024 * 1024) /* bytes of filters from which on that is faster */

static long least(long a, long b) { return a < b ? a : b; }
static long ceiling(long a, long b) { return (a + b - 1) / b; }

/* 64-byte aligned floats, to be given to free(); NULL where there is no memory */
static float *floats(long count) { return aligned_alloc(64, ceiling(count * 4, 64) * 64); }

/* Raised with every change of a function's arguments, so that an older library is not called as this one is. */
__attribute__((visibility("default"))) int version(void) { return 1; }

/* Whether this processor runs the functions of an instruction set, "avx2" or "avx512". */
__attribute__((visibility("default"))) int supports(const char *set) {
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strcmp(set, "avx2")) return avx2;
    return !strcmp(set, "avx512") && avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
}

#define LANES 8
#define ROWS 6 /* x 2 vectors: the sums of a block of a product fill 12 of 16 registers */
#define SUFFIX avx2
#define INSTRUCTIONS "avx2,fma"
#include "kernels.c"
#undef LANES
#undef ROWS
#undef SUFFIX
#undef INSTRUCTIONS

#define LANES 16
#define ROWS 12 /* x 2 vectors: 24 of 32 registers */
#define SUFFIX avx512
#define INSTRUCTIONS "avx512f,avx512dq,fma,prefer-vector-width=512"
#include "kernels.c"

#else

#define vec NAME(vec)
#define ivec NAME(ivec)
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define PANEL (2 * LANES) /* columns of a panel of a packed matrix */

/* -- vectors: of a row of floats that may end within one ------------------------------------------------- */

HELPER vec NAME(load)(const float *from, long count) {
    if (count >= LANES) return *(const vec *)from;
    vec v = {0};
    memcpy(&v, from, count * 4);
    return v;
}

HELPER void NAME(store)(float *to, vec v, long count) {
    if (count >= LANES)
        *(vec *)to = v;
    else
        memcpy(to, &v, count * 4);
}

/* a where the mask is set, else b */
HELPER vec NAME(chosen)(ivec mask, vec a, vec b) { return (vec)(((ivec)a & mask) | ((ivec)b & ~mask)); }

/* 1 / (1 + exp(-v)), to 2 units in the last place. exp(r) for |r| <= ln(2) / 2 by its Taylor polynomial. */
HELPER vec NAME(sigmoid)(vec v) {
    vec x = -v;
    vec low = {0}, high = {0};
    low -= 87.0f, high += 88.0f;
    x = NAME(chosen)(x < low, low, x);
    x = NAME(chosen)(x > high, high, x);
    vec shift = {0};
    shift += 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number, kept in the last bits */
    vec whole = x * 1.44269504088896341f + shift;
    ivec power = ((ivec)whole - (ivec)shift) << 23;
    whole -= shift;
    vec r = x - whole * 0.693359375f + whole * 2.12194440e-4f; /* ln(2) in two parts, after Cody and Waite */
    vec e = r * (1.0f / 5040) + (1.0f / 720);
    e = e * r + (1.0f / 120);
    e = e * r + (1.0f / 24);
    e = e * r + (1.0f / 6);
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    e = (vec)((ivec)e + power);
    return 1.0f / (1.0f + e);
}

/* -- products of matrices --------------------------------------------------------------------------------- */

/* m [rows, PANEL] += or = v [rows, depth] times the panel u [depth, PANEL]. With `columns` v is [depth, rows]. The sums
   of a row are taken in the same order whatever the number of rows, so an image's do not depend on its neighbours. */
HELPER void NAME(block)(const int rows, const int columns, const int adds, const float *v, long v_step, const float *u,
                        long u_step, long depth, float *m, long m_step) {
    vec sum[ROWS][2];
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        sum[i][0] = adds ? *(vec *)(m + i * m_step) : (vec){0};
        sum[i][1] = adds ? *(vec *)(m + i * m_step + LANES) : (vec){0};
    }
    for (long k = 0; k < depth; k++) {
        vec u0 = *(const vec *)(u + k * u_step), u1 = *(const vec *)(u + k * u_step + LANES);
#pragma GCC unroll 12
        for (int i = 0; i < rows; i++) {
            float s = columns ? v[k * v_step + i] : v[i * v_step + k];
            sum[i][0] += s * u0;
            sum[i][1] += s * u1;
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < rows; i++) {
        *(vec *)(m + i * m_step) = sum[i][0];
        *(vec *)(m + i * m_step + LANES) = sum[i][1];
    }
}

/* A block of at most ROWS rows, its number of rows a constant for the compiler. */
HELPER void NAME(some_rows)(long rows, const int columns, const int adds, const float *v, long v_step, const float *u,
                            long u_step, long depth, float *m, long m_step) {
#define CASE(n)                                                                            \
    case n:                                                                                \
        NAME(block)(n, columns, adds, v, v_step, u, u_step, depth, m, m_step); \
        break;
    switch (rows) {
#if ROWS == 12
        CASE(12)
        CASE(11)
        CASE(10)
        CASE(9)
        CASE(8)
        CASE(7)
#endif
        CASE(6)
        CASE(5)
        CASE(4)
        CASE(3)
        CASE(2)
        CASE(1)
    }
#undef CASE
}

/* m [rows, width] = v [rows, depth] times a packed matrix of panels [width / PANEL, depth, PANEL]. */
LOCAL void NAME(product)(const float *v, long v_step, const float *u, float *m, long rows, long depth, long width) {
    for (long panel = 0; panel < width; panel += PANEL)
        for (long row = 0; row < rows; row += ROWS)
            NAME(some_rows)(least(ROWS, rows - row), 0, 0, v + row * v_step, v_step, u + panel * depth, PANEL, depth,
                            m + row * width + panel, width);
}

/* m [rows, width] = v^T times u, or with `adds` m plus that, for v [depth, rows] and u [depth, width]. */
LOCAL void NAME(transposed_product)(const float *v, long v_step, const float *u, float *m, long rows, long depth,
                                    long width, int adds) {
    for (long row = 0; row < rows; row += ROWS)
        for (long panel = 0; panel < width; panel += PANEL)
            NAME(some_rows)(least(ROWS, rows - row), 1, adds, v + row, v_step, u + panel, width, depth,
                            m + row * width + panel, width);
}

/* -- the transforms of Winograd's F(4x4, 3x3), each along one axis, of values `step` apart ----------------- */

HELPER void NAME(input_axis)(vec *d, int step) { /* B^T */
    vec a = d[0], b = d[step], c = d[2 * step], e = d[3 * step], f = d[4 * step], g = d[5 * step];
    vec even = f - 4.0f * c, odd = e - 4.0f * b, even2 = f - c, odd2 = 2.0f * (e - b);
    d[0] = 4.0f * a - 5.0f * c + f;
    d[step] = even + odd;
    d[2 * step] = even - odd;
    d[3 * step] = even2 + odd2;
    d[4 * step] = even2 - odd2;
    d[5 * step] = 4.0f * b - 5.0f * e + g;
}

HELPER void NAME(output_axis)(const vec *m, int step, vec *y, int y_step) { /* A^T */
    vec sum = m[step] + m[2 * step], difference = m[step] - m[2 * step];
    vec sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
    y[0] = m[0] + sum + sum2;
    y[y_step] = difference + 2.0f * difference2;
    y[2 * y_step] = sum + 4.0f * sum2;
    y[3 * y_step] = difference + 8.0f * difference2 + m[5 * step];
}

HELPER void NAME(output_gradient_axis)(const vec *y, int step, vec *m, int m_step) { /* A */
    vec even = y[0] + y[2 * step], odd = y[step] + y[3 * step];
    vec even2 = y[0] + 4.0f * y[2 * step], odd2 = 2.0f * y[step] + 8.0f * y[3 * step];
    vec first = y[0], last = y[3 * step];
    m[0] = first;
    m[m_step] = even + odd;
    m[2 * m_step] = even - odd;
    m[3 * m_step] = even2 + odd2;
    m[4 * m_step] = even2 - odd2;
    m[5 * m_step] = last;
}

HELPER void NAME(filter_axis)(const vec *g, int step, vec *u, int u_step) { /* G */
    vec a = g[0], b = g[step], c = g[2 * step];
    vec sum = (a + c) * (-1.0f / 6), middle = b * (-1.0f / 6);
    vec sum2 = a * (1.0f / 24) + c * (1.0f / 6), middle2 = b * (1.0f / 12);
    u[0] = a * 0.25f;
    u[u_step] = sum + middle;
    u[2 * u_step] = sum - middle;
    u[3 * u_step] = sum2 + middle2;
    u[4 * u_step] = sum2 - middle2;
    u[5 * u_step] = c;
}

HELPER void NAME(filter_gradient_axis)(const vec *u, int step, vec *g, int g_step) { /* G^T */
    vec sum = u[step] + u[2 * step], difference = u[2 * step] - u[step];
    vec sum2 = u[3 * step] + u[4 * step], difference2 = u[3 * step] - u[4 * step];
    g[0] = u[0] * 0.25f - sum * (1.0f / 6) + sum2 * (1.0f / 24);
    g[g_step] = difference * (1.0f / 6) + difference2 * (1.0f / 12);
    g[2 * g_step] = (sum2 - sum) * (1.0f / 6) + u[5 * step];
}

/* v[k * k_step + c] = the 36 values of the tile of x whose first output is at (y, x) of an image [H, W, C]. */
LOCAL void NAME(input_tile)(const float *image, long H, long W, long C, long y, long x, float *v, long k_step) {
    int inside = y > 0 && x > 0 && y + 5 <= H && x + 5 <= W;
    const float *corner = image + ((y - 1) * W + x - 1) * C;
    for (long c = 0; c < C; c += LANES) {
        vec d[TILE];
        for (int j = 0; j < 6; j++) {
            for (int i = 0; i < 6; i++) {
                int there = inside || (y + i >= 1 && y + i <= H && x + j >= 1 && x + j <= W);
                d[6 * i + j] = there ? NAME(load)(corner + (i * W + j) * C + c, C - c) : (vec){0};
            }
            NAME(input_axis)(d + j, 6);
        }
        for (int i = 0; i < 6; i++) {
            NAME(input_axis)(d + 6 * i, 1);
            for (int j = 0; j < 6; j++) NAME(store)(v + (6 * i + j) * k_step + c, d[6 * i + j], C - c);
        }
    }
}

/* The 4x4 outputs at (y, x) of an image [H, W, O] from 36 rows of products, plus a bias [O] and a residual image. */
LOCAL void NAME(output_tile)(const float *m, long k_step, const float *bias, const float *residual, float *image,
                             long W, long O, long y, long x) {
    for (long o = 0; o < O; o += LANES) {
        vec half[24], out[4];
        vec b = bias ? NAME(load)(bias + o, O - o) : (vec){0};
        for (int j = 0; j < 6; j++) {
            vec column[6];
            for (int i = 0; i < 6; i++) column[i] = *(const vec *)(m + (6 * i + j) * k_step + o);
            NAME(output_axis)(column, 1, half + j, 6);
        }
        for (int i = 0; i < 4; i++) {
            NAME(output_axis)(half + 6 * i, 1, out, 1);
            for (int j = 0; j < 4; j++) {
                long place = ((y + i) * W + x + j) * O + o;
                vec value = out[j] + b;
                if (residual) value += NAME(load)(residual + place, O - o);
                NAME(store)(image + place, value, O - o);
            }
        }
    }
}

/* m[k * k_step + o] = the 36 values that the gradient of a tile's 4x4 outputs amounts to; o up to a whole panel. */
LOCAL void NAME(output_gradient_tile)(const float *image, long W, long O, long y, long x, float *m, long k_step) {
    for (long o = 0; o < O; o += LANES) {
        vec half[24], out[6];
        for (int j = 0; j < 4; j++) {
            vec column[4];
            for (int i = 0; i < 4; i++) column[i] = NAME(load)(image + ((y + i) * W + x + j) * O + o, O - o);
            NAME(output_gradient_axis)(column, 1, half + j, 4);
        }
        for (int i = 0; i < 6; i++) {
            NAME(output_gradient_axis)(half + 4 * i, 1, out, 1);
            for (int j = 0; j < 6; j++) *(vec *)(m + (6 * i + j) * k_step + o) = out[j];
        }
    }
}

/* -- convolutions ------------------------------------------------------------------------------------------- */

/* Channels of an output in whole panels. */
HELPER long NAME(padded)(long O) { return ceiling(O, PANEL) * PANEL; }

/* How many tiles are worked on at once. */
HELPER long NAME(tiles_at_once)(long C, long O, long tiles, long threads) {
    long width = NAME(padded)(O), bytes = 4 * TILE * C * width > FILTERS ? LAST_CACHE : CACHE;
    long fitting = bytes / (4 * TILE * (C + width));
    long share = ceiling(tiles ? tiles : 1, threads);
    if (fitting < ROWS) fitting = ROWS;
    share = ceiling(share, ceiling(share, fitting)); /* blocks of about equal size */
    return ceiling(share, ROWS) * ROWS;
}

/* Floats that `convolution_filters` writes. */
EXPORTED long NAME(filter_floats)(long C, long O) { return TILE * C * NAME(padded)(O); }

/* u = the transform of filters g [O, C, 3, 3], as 36 packed matrices [C, O]. With `turned` g is [C, O, 3, 3] and each
   filter is rotated by half a turn, as the gradient of the input needs it. */
EXPORTED void NAME(convolution_filters)(const float *g, float *u, long C, long O, int turned, int threads) {
    long out_step = turned ? 9 : 9 * C, in_step = turned ? 9 * O : 9, k_step = C * NAME(padded)(O);
#pragma omp parallel for num_threads(threads)
    for (long panel = 0; panel < NAME(padded)(O); panel += PANEL)
        for (long c = 0; c < C; c++) {
            float taps[9][PANEL] __attribute__((aligned(64)));
            memset(taps, 0, sizeof taps);
            for (long o = 0; o < least(PANEL, O - panel); o++) {
                const float *from = g + (panel + o) * out_step + c * in_step;
                for (int i = 0; i < 9; i++) taps[turned ? 8 - i : i][o] = from[i];
            }
            for (int half = 0; half < PANEL; half += LANES) {
                vec rows[18], column[3], out[6];
                for (int j = 0; j < 3; j++) {
                    for (int i = 0; i < 3; i++) column[i] = *(vec *)(taps[3 * i + j] + half);
                    NAME(filter_axis)(column, 1, rows + j, 3);
                }
                for (int i = 0; i < 6; i++) {
                    NAME(filter_axis)(rows + 3 * i, 1, out, 1);
                    for (int j = 0; j < 6; j++)
                        *(vec *)(u + (6 * i + j) * k_step + panel * C + c * PANEL + half) = out[j];
                }
            }
        }
}

/* y [N, H, W, O] = the convolution of x [N, H, W, C] by the transformed filters u, plus bias [O] and residual like y,
   each of which may be NULL. Returns 0, or -1 where there is no memory. */
EXPORTED int NAME(convolution)(const float *x, const float *u, const float *bias, const float *residual, float *y,
                               long N, long H, long W, long C, long O, int threads) {
    long across = W / 4, each = H / 4 * across, tiles = N * each, width = NAME(padded)(O);
    long block = NAME(tiles_at_once)(C, O, tiles, threads);
    long v_step = block * C + SKEW, m_step = block * width + SKEW, share = ceiling(TILE * (v_step + m_step), 16) * 16;
    float *space = floats(share * threads);
    if (!space) return -1;
#pragma omp parallel num_threads(threads)
    {
        float *v = space + omp_get_thread_num() * share, *m = v + TILE * v_step;
#pragma omp for schedule(static)
        for (long first = 0; first < tiles; first += block) {
            long count = least(block, tiles - first);
            for (long i = 0; i < count; i++) {
                long n = (first + i) / each, at = (first + i) % each;
                NAME(input_tile)(x + n * H * W * C, H, W, C, at / across * 4, at % across * 4, v + i * C, v_step);
            }
            for (int k = 0; k < TILE; k++)
                NAME(product)(v + k * v_step, C, u + k * C * width, m + k * m_step, count, C, width);
            for (long i = 0; i < count; i++) {
                long n = (first + i) / each, at = (first + i) % each, skip = n * H * W * O;
                NAME(output_tile)(m + i * width, m_step, bias, residual ? residual + skip : NULL, y + skip, W, O,
                                  at / across * 4, at % across * 4);
            }
        }
    }
    free(space);
    return 0;
}

/* The filters g [O, C, 3, 3] of the inputs c to c + count, from the sums u of 36 matrices [count, width]. */
LOCAL void NAME(filters_from_sums)(const float *u, long u_step, long width, float *g, long c, long count, long C,
                                   long O, long o) {
    for (long i = 0; i < count; i++) {
        vec half[18], out[3];
        float taps[9][LANES];
        for (int j = 0; j < 6; j++) {
            vec column[6];
            for (int k = 0; k < 6; k++) column[k] = *(const vec *)(u + (6 * k + j) * u_step + i * width + o);
            NAME(filter_gradient_axis)(column, 1, half + j, 6);
        }
        for (int j = 0; j < 3; j++) {
            NAME(filter_gradient_axis)(half + 6 * j, 1, out, 1);
            for (int k = 0; k < 3; k++) *(vec *)taps[3 * j + k] = out[k];
        }
        for (long lane = 0; lane < least(LANES, O - o); lane++)
            for (int j = 0; j < 9; j++) g[((o + lane) * C + c + i) * 9 + j] = taps[j][lane];
    }
}

/* g [O, C, 3, 3] = the gradient of the filters, for x [N, H, W, C] and the gradient dy [N, H, W, O] of the outputs.
   Returns 0, or -1 where there is no memory.

   Where the tiles are more than the filters, they are taken in blocks, each added to the sums of all filters; where they
   are fewer, they are kept, and the sums are made for a few inputs at a time. So each stays in a cache. */
EXPORTED int NAME(filter_gradient)(const float *x, const float *dy, float *g, long N, long H, long W, long C, long O,
                                   int threads) {
    long across = W / 4, each = H / 4 * across, tiles = N * each, width = NAME(padded)(O);
    if (!tiles) {
        memset(g, 0, O * C * 9 * sizeof(float));
        return 0;
    }
    int kept = tiles * (C + width) < C * width;
    long block = kept ? tiles : NAME(tiles_at_once)(C, O, tiles, 1);
    long inputs = kept ? ROWS * ceiling(CACHE / (4 * TILE), ROWS * width) : C;
    inputs = least(inputs, C);
    long v_step = block * C + SKEW, m_step = block * width + SKEW, u_step = inputs * width + SKEW;
    float *space = floats(TILE * (v_step + m_step + u_step));
    if (!space) return -1;
    float *v = space, *m = v + TILE * v_step, *u = m + TILE * m_step;
#pragma omp parallel num_threads(threads)
    for (long c = 0; c < C; c += inputs) {
        long some = least(inputs, C - c);
        for (long first = 0; first < tiles; first += block) {
            long count = least(block, tiles - first);
            if (c == 0) {
#pragma omp for schedule(static)
                for (long i = 0; i < count; i++) {
                    long n = (first + i) / each, at = (first + i) % each, y0 = at / across * 4, x0 = at % across * 4;
                    NAME(input_tile)(x + n * H * W * C, H, W, C, y0, x0, v + i * C, v_step);
                    NAME(output_gradient_tile)(dy + n * H * W * O, W, O, y0, x0, m + i * width, m_step);
                }
            }
#pragma omp for schedule(static)
            for (int k = 0; k < TILE; k++)
                NAME(transposed_product)(v + k * v_step + c, C, m + k * m_step, u + k * u_step, some, count, width,
                                         first > 0);
        }
#pragma omp for schedule(static)
        for (long o = 0; o < O; o += LANES) NAME(filters_from_sums)(u, u_step, width, g, c, some, C, O, o);
    }
    free(space);
    return 0;
}

/* -- linear layers, which 1x1 convolutions are -------------------------------------------------------------------- */

/* Floats that `linear_weights` writes. */
EXPORTED long NAME(linear_floats)(long C, long O) { return C * NAME(padded)(O); }

/* u = weights w [O, C] as a packed matrix [C, O]. */
EXPORTED void NAME(linear_weights)(const float *w, float *u, long C, long O) {
    for (long panel = 0; panel < NAME(padded)(O); panel += PANEL)
        for (long c = 0; c < C; c++)
            for (long o = panel; o < panel + PANEL; o++) *u++ = o < O ? w[o * C + c] : 0;
}

/* y [P, O] = x [P, C] times the packed weights u, plus bias [O] and residual [P, O], each of which may be NULL. */
EXPORTED void NAME(linear)(const float *x, const float *u, const float *bias, const float *residual, float *y, long P,
                           long C, long O, int threads) {
    long block = 8 * ROWS; /* of these the inputs stay in the second cache from panel to panel */
#pragma omp parallel for num_threads(threads)
    for (long first = 0; first < P; first += block)
        for (long panel = 0; panel < O; panel += PANEL)
            for (long row = first; row < least(first + block, P); row += ROWS) {
                float m[ROWS * PANEL] __attribute__((aligned(64)));
                long rows = least(ROWS, P - row);
                NAME(some_rows)(rows, 0, 0, x + row * C, C, u + panel * C, PANEL, C, m, PANEL);
                for (long i = 0; i < rows; i++)
                    for (long o = panel; o < least(panel + PANEL, O); o += LANES) {
                        vec value = *(vec *)(m + i * PANEL + o - panel);
                        long place = (row + i) * O + o;
                        if (bias) value += NAME(load)(bias + o, O - o);
                        if (residual) value += NAME(load)(residual + place, O - o);
                        NAME(store)(y + place, value, O - o);
                    }
            }
}

/* -- group normalisation, scale and shift, SiLU ---------------------------------------------------------------- */

/* The mean [C] and 1 / deviation [C] (equal within a group) of an image [P, C]. Sums are of differences from the
   channel's first value, so that a large mean costs no digits. */
LOCAL void NAME(moments)(const float *x, long P, long C, long groups, float eps, float *mean, float *rstd,
                         double *sums) {
    memset(sums, 0, 2 * C * sizeof(double));
    for (long begin = 0; begin < P; begin += 64) {
        long end = least(begin + 64, P);
        for (long c = 0; c < C; c += LANES) {
            vec first = *(const vec *)(x + c), total[4] = {{0}}, square[4] = {{0}};
            long p = begin;
            for (; p + 4 <= end; p += 4)
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) {
                    vec d = *(const vec *)(x + (p + i) * C + c) - first;
                    total[i] += d;
                    square[i] += d * d;
                }
            for (; p < end; p++) {
                vec d = *(const vec *)(x + p * C + c) - first;
                total[0] += d;
                square[0] += d * d;
            }
            vec sum = (total[0] + total[1]) + (total[2] + total[3]);
            vec squares = (square[0] + square[1]) + (square[2] + square[3]);
            for (int lane = 0; lane < LANES; lane++) {
                sums[c + lane] += sum[lane];
                sums[C + c + lane] += squares[lane];
            }
        }
    }
    long width = C / groups;
    for (long from = 0; from < C; from += width) {
        double average = 0, variance = 0;
        for (long c = from; c < from + width; c++) average += (x[c] + sums[c] / P) / width;
        for (long c = from; c < from + width; c++) {
            double own = sums[c] / P, off = x[c] + own - average;
            variance += (sums[C + c] / P - own * own + off * off) / width;
        }
        /* squares beyond float32 are no number, so that a network that diverges is seen to */
        double inverse = variance < INFINITY ? 1 / sqrt((variance > 0 ? variance : 0) + eps) : NAN;
        for (long c = from; c < from + width; c++) {
            mean[c] = (float)average;
            rstd[c] = (float)inverse;
        }
    }
}

/* y [N, P, C] = group normalisation of x [N, P, C] with weight and bias [C]; then, where they are not NULL, times
   1 + scale[n * step + c] plus shift[n * step + c]; then SiLU, where it is asked for. `statistics` [N, 2, C] is filled
   with means and 1 / deviations. C is a multiple of 16. Returns 0, or -1 where there is no memory. */
EXPORTED int NAME(normalised)(const float *x, const float *weight, const float *bias, const float *scale,
                              const float *shift, long step, float *y, float *statistics, long N, long P, long C,
                              long groups, float eps, int silu, int threads) {
    int failed = 0;
#pragma omp parallel for num_threads(threads)
    for (long n = 0; n < N; n++) {
        float *slope = floats(6 * C), *offset = slope + C; /* and 2 C doubles */
        if (!slope) {
            failed = 1;
            continue;
        }
        const float *from = x + n * P * C;
        float *to = y + n * P * C, *mean = statistics + n * 2 * C, *rstd = mean + C;
        NAME(moments)(from, P, C, groups, eps, mean, rstd, (double *)(slope + 2 * C));
        for (long c = 0; c < C; c++) {
            slope[c] = weight[c] * rstd[c];
            offset[c] = bias[c] - mean[c] * slope[c];
            if (scale) {
                slope[c] *= 1 + scale[n * step + c];
                offset[c] = offset[c] * (1 + scale[n * step + c]) + shift[n * step + c];
            }
        }
        for (long p = 0; p < P; p++)
            for (long c = 0; c < C; c += LANES) {
                vec v = *(const vec *)(from + p * C + c) * *(vec *)(slope + c) + *(vec *)(offset + c);
                if (silu) v *= NAME(sigmoid)(v);
                *(vec *)(to + p * C + c) = v;
            }
        free(slope);
    }
    return -failed;
}

/* The gradient dx of `normalised` for the gradient dy of its result, and for each image and channel the sums over
   positions of du and of du * (x - mean) * rstd, as sums [N, 2, C], where du is the gradient before SiLU: all other
   gradients are products of these. Returns 0, or -1 where there is no memory. */
EXPORTED int NAME(normalised_gradient)(const float *x, const float *dy, const float *weight, const float *bias,
                                       const float *scale, const float *shift, long step, const float *statistics,
                                       float *dx, float *sums, long N, long P, long C, long groups, int silu,
                                       int threads) {
    int failed = 0;
#pragma omp parallel for num_threads(threads)
    for (long n = 0; n < N; n++) {
        float *slope = floats(4 * C), *offset = slope + C, *constant = offset + C, *linear = constant + C;
        if (!slope) {
            failed = 1;
            continue;
        }
        const float *from = x + n * P * C, *given = dy + n * P * C, *mean = statistics + n * 2 * C, *rstd = mean + C;
        float *to = dx + n * P * C, *du_sum = sums + n * 2 * C, *dux_sum = du_sum + C;
        for (long c = 0; c < C; c++) {
            float factor = scale ? 1 + scale[n * step + c] : 1;
            slope[c] = weight[c] * rstd[c] * factor;
            offset[c] = (bias[c] - mean[c] * weight[c] * rstd[c]) * factor + (shift ? shift[n * step + c] : 0);
            du_sum[c] = dux_sum[c] = 0;
        }
        for (long begin = 0; begin < P; begin += 16) /* so many positions at once stay in the first cache */
            for (long c = 0; c < C; c += LANES) {
                vec sum = {0}, sum_x = {0}, m = *(const vec *)(mean + c), r = *(const vec *)(rstd + c);
                for (long p = begin; p < least(begin + 16, P); p++) {
                    vec in = *(const vec *)(from + p * C + c), du = *(const vec *)(given + p * C + c);
                    if (silu) {
                        vec u = in * *(vec *)(slope + c) + *(vec *)(offset + c), s = NAME(sigmoid)(u);
                        du *= s * (1.0f + u * (1.0f - s));
                    }
                    *(vec *)(to + p * C + c) = du;
                    sum += du;
                    sum_x += du * ((in - m) * r);
                }
                *(vec *)(du_sum + c) += sum;
                *(vec *)(dux_sum + c) += sum_x;
            }
        /* dx = slope * du - rstd * (mean over the group of g du + normalised x * that of g du x), g = weight * factor */
        for (long begin = 0, width = C / groups; begin < C; begin += width) {
            double average = 0, average_x = 0;
            for (long c = begin; c < begin + width; c++) {
                average += (double)slope[c] / rstd[c] * du_sum[c];
                average_x += (double)slope[c] / rstd[c] * dux_sum[c];
            }
            average /= (double)width * P, average_x /= (double)width * P;
            for (long c = begin; c < begin + width; c++) {
                linear[c] = (float)(-rstd[c] * rstd[c] * average_x);
                constant[c] = (float)(-rstd[c] * average) - mean[c] * linear[c];
            }
        }
        for (long p = 0; p < P; p++)
            for (long c = 0; c < C; c += LANES) {
                vec *out = (vec *)(to + p * C + c);
                *out = *out * *(vec *)(slope + c) + *(const vec *)(from + p * C + c) * *(vec *)(linear + c) +
                       *(vec *)(constant + c);
            }
        free(slope);
    }
    return -failed;
}

#undef vec
#undef ivec
#undef PANEL

#endif
