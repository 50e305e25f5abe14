/* The CPU operators of the Transformer in bf16 and fp32. native.py compiles this file and calls it.
 *
 * Every number is summed by one thread in one order, which depends neither on the number of rows (n) computed together
 * nor on the number of threads nor, in attention, on where in the cache a key lies. So a row has the same bits alone,
 * in a chain and in a tree. One kernel, dot_block(), does all the work: of linear layers, of q K^T and of P V.
 *
 * Weights are packed in tiles of TILE outputs: [tile][step][TILE], a step being one input (fp32) or a pair of inputs
 * (bf16). A lane of a vector belongs to one output, a vector register to one row: nothing is summed across lanes, and
 * a tile is read from memory once for up to ROWS rows. Keys are cached in the same layout (outputs = positions), values
 * in [tile of head_dim][position][TILE] (inputs = positions). */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif
#include <omp.h>

#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8 }; /* ROWS * 2 sums must fit the registers, and cover the latency of a multiply-add */
#elif defined(__AVX2__) && defined(__FMA__)
enum { LANES = 8, ROWS = 6 };
#else
enum { LANES = 4, ROWS = 6 };
#endif
enum { TILE = 2 * LANES, AHEAD = 3072 }; /* AHEAD: bytes of weights asked for in advance; over a page's end too */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t half __attribute__((vector_size(2 * LANES)));
typedef vec vec_at __attribute__((aligned(1), may_alias)); /* the same in memory, anywhere */
typedef half half_at __attribute__((aligned(1), may_alias));

typedef struct {
    const char *weight; /* packed */
    const float *bias;  /* whole tiles, or NULL */
    long inputs, outputs;
} Linear;

typedef struct {
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm; /* the last two or NULL */
    Linear qkv, out, gate_up, down;
} Layer;

typedef struct {
    long threads, bf16, width, heads, kv_heads, head_dim, mlp_width;
    double eps;
    long rows, start, capacity; /* this pass's n rows go to cache rows start .. start + n, of capacity */
    const long *parents;        /* of each row, itself a row of this pass, or -1; NULL: a chain */
    const float *cosines, *sines; /* [n][head_dim], the sines of the first half negated */
    char *keys, *values;          /* of layer 0 */
} Pass;

typedef struct { /* of one pass, shared by the threads except scores and path */
    char *normed, *q, *attended, *product;
    float *qkv, *scores;
    long *path;
    long score_stride;
} Scratch;

/* ---- numbers ---- */

static inline vec all(float x) { return x - (vec){0}; }

static inline long tiles(long outputs) { return (outputs + TILE - 1) / TILE; }

static inline vec pick(bits mask, vec yes, vec no) { return (vec)((mask & (bits)yes) | (~mask & (bits)no)); }

static inline vec multiply_add(vec a, vec b, vec sum) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return a * b + sum;
#endif
}

/* sum + the two products of bf16 pairs (the lower half first in memory) */
static inline vec multiply_add_pairs(vec a, vec b, vec sum) {
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    const bits upper = (bits){0} + 0xffff0000u;
    sum = multiply_add((vec)((bits)a << 16), (vec)((bits)b << 16), sum);
    return multiply_add((vec)((bits)a & upper), (vec)((bits)b & upper), sum);
#endif
}

static inline vec at(const float *x) { return *(const vec_at *)x; }

static inline vec widen(const uint16_t *x) { return (vec)(__builtin_convertvector(*(const half_at *)x, bits) << 16); }

static inline vec load(const char *x, long i, long bf16) {
    return bf16 ? widen((const uint16_t *)x + i) : at((const float *)x + i);
}

/* x[i .. i + LANES] = v, rounded to nearest even in bf16; at most `room` of them */
static inline void store(char *x, long i, long room, vec v, long bf16) {
    bits rounded = (bits)v + 0x7fff + ((bits)v >> 16 & 1);
    rounded = (bits)pick((bits)(v == v), (vec)rounded, (vec)((bits){0} + 0x7fc00000u));
    half narrow = __builtin_convertvector(rounded >> 16, half);
    long size = bf16 ? 2 : 4;
    const void *from = bf16 ? (const void *)&narrow : (const void *)&v;
    if (room >= LANES)
        memcpy(x + i * size, from, bf16 ? sizeof narrow : sizeof v);
    else if (room > 0)
        memcpy(x + i * size, from, room * size);
}

static float total(vec v) {
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++) v[i] += v[i + step];
    return v[0];
}

/* e^x within 2 ulp for -87 < x < 88 and clamped beyond: 2^n times a polynomial in what is left of x */
static vec exponential(vec x) {
    x = pick((bits)(x > -87), x, all(-87));
    x = pick((bits)(x < 88), x, all(88));
    vec shifted = multiply_add(x, all(1.44269504f), all(12582912)); /* 1.5 * 2^23: n in the lowest bits */
    vec n = shifted - 12582912;
    vec r = multiply_add(n, all(-0.693359375f), x);
    r = multiply_add(n, all(2.12194440e-4f), r);
    const float taylor[] = {1 / 720.f, 1 / 120.f, 1 / 24.f, 1 / 6.f, 0.5f, 1, 1};
    vec p = all(1 / 5040.f);
    for (int i = 0; i < 7; i++) p = multiply_add(p, r, all(taylor[i]));
    return (vec)((bits)p + ((bits)shifted << 23));
}

/* ---- the kernel ---- */

enum { FLOATS, PAIRS, MIXED }; /* weights and inputs: both fp32, both bf16 in pairs, bf16 weights and fp32 inputs */

/* sum[row] += weight x input[row], for a constant number of rows, so that the sums stay in registers. Inputs are read
 * in units of 4 bytes; a row's arithmetic is the same for every number of rows. */
static inline __attribute__((always_inline)) void dot_block(const int kind, const int rows, long steps, const char *w,
                                                            const uint32_t *x, long stride, vec (*sum)[2]) {
    const long size = kind == MIXED ? 2 * TILE : 4 * TILE;
    vec s[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) s[r][0] = sum[r][0], s[r][1] = sum[r][1];
    for (long i = 0; i < steps; i++, w += size) {
        __builtin_prefetch(w + AHEAD);
        if (size > 64) __builtin_prefetch(w + AHEAD + 64);
        vec w0 = load(w, 0, kind == MIXED), w1 = load(w, LANES, kind == MIXED);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            vec value = (vec)((bits){0} + x[r * stride + i]);
            s[r][0] = kind == PAIRS ? multiply_add_pairs(w0, value, s[r][0]) : multiply_add(w0, value, s[r][0]);
            s[r][1] = kind == PAIRS ? multiply_add_pairs(w1, value, s[r][1]) : multiply_add(w1, value, s[r][1]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sum[r][0] = s[r][0], sum[r][1] = s[r][1];
}

#define BLOCKS_OF(kind, rows) \
    case 8 * kind + rows - 1: dot_block(kind, rows, steps, w, x, stride, sum); break;
#define BLOCKS(kind) \
    BLOCKS_OF(kind, 1) BLOCKS_OF(kind, 2) BLOCKS_OF(kind, 3) BLOCKS_OF(kind, 4) BLOCKS_OF(kind, 5) BLOCKS_OF(kind, 6) \
    BLOCKS_AVX512(kind)
#if defined(__AVX512F__)
#define BLOCKS_AVX512(kind) BLOCKS_OF(kind, 7) BLOCKS_OF(kind, 8)
#else
#define BLOCKS_AVX512(kind)
#endif

static void dot(int kind, int rows, long steps, const char *w, const void *input, long stride, vec (*sum)[2]) {
    const uint32_t *x = input;
    switch (8 * kind + rows - 1) { BLOCKS(FLOATS) BLOCKS(PAIRS) BLOCKS(MIXED) }
}

/* ---- operators: each is called by all threads, which share its loop; it ends when all are done ---- */

static void rms_norm_row(const char *x, const float *weight, long width, float eps, long bf16, char *y) {
    vec squares = {0};
    for (long i = 0; i < width; i += LANES) {
        vec v = load(x, i, bf16);
        squares = multiply_add(v, v, squares);
    }
    float scale = 1 / sqrtf(total(squares) / width + eps);
    for (long i = 0; i < width; i += LANES)
        store(y, i, LANES, load(x, i, bf16) * scale * at(weight + i), bf16);
}

static void rms_norm_rows(const Pass *p, const char *x, const float *weight, char *y) {
    long row = p->width * (p->bf16 ? 2 : 4);
#pragma omp for schedule(static)
    for (long n = 0; n < p->rows; n++) rms_norm_row(x + n * row, weight, p->width, p->eps, p->bf16, y + n * row);
}

/* sum = bias + tile `t` of the weights times `rows` inputs */
static void linear_tile(const Linear *l, long bf16, long t, int rows, const char *x, vec (*sum)[2]) {
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++) sum[r][v] = l->bias ? at(l->bias + t * TILE + v * LANES) : (vec){0};
    long steps = bf16 ? l->inputs / 2 : l->inputs;
    dot(bf16 ? PAIRS : FLOATS, rows, steps, l->weight + t * steps * TILE * 4, x, steps, sum);
}

/* y = x W^T + b, or added to y; y may be fp32 where x is bf16 */
static void linear_rows(const Linear *l, long bf16, long rows, const char *x, char *y, long y_bf16, int add) {
#pragma omp for schedule(static)
    for (long t = 0; t < tiles(l->outputs); t++)
        for (long n = 0; n < rows; n += ROWS) {
            vec sum[ROWS][2];
            int block = rows - n < ROWS ? rows - n : ROWS;
            linear_tile(l, bf16, t, block, x + n * l->inputs * (bf16 ? 2 : 4), sum);
            for (int r = 0; r < block; r++)
                for (int v = 0; v < 2; v++) {
                    long column = t * TILE + v * LANES, i = (n + r) * l->outputs + column;
                    store(y, i, l->outputs - column, add ? load(y, i, y_bf16) + sum[r][v] : sum[r][v], y_bf16);
                }
        }
}

/* y = silu(gate x) * (up x): the gate is the upper half of the outputs */
static void swiglu_rows(const Linear *l, const Pass *p, const char *x, char *y) {
    long count = tiles(p->mlp_width);
#pragma omp for schedule(static)
    for (long t = 0; t < count; t++)
        for (long n = 0; n < p->rows; n += ROWS) {
            vec gate[ROWS][2], up[ROWS][2];
            int block = p->rows - n < ROWS ? p->rows - n : ROWS;
            const char *from = x + n * l->inputs * (p->bf16 ? 2 : 4);
            linear_tile(l, p->bf16, t, block, from, gate);
            linear_tile(l, p->bf16, count + t, block, from, up);
            for (int r = 0; r < block; r++)
                for (int v = 0; v < 2; v++) {
                    vec product = gate[r][v] / (1 + exponential(-gate[r][v])) * up[r][v];
                    store(y, (n + r) * p->mlp_width + t * TILE + v * LANES, LANES, product, p->bf16);
                }
        }
}

/* Rotate the pairs (i, i + head_dim / 2) of one head (RoPE). */
static void rotate(float *x, const float *cosines, const float *sines, long half_dim) {
    for (long i = 0; i < half_dim; i++) {
        float a = x[i], b = x[i + half_dim];
        x[i] = a * cosines[i] + b * sines[i];
        x[i + half_dim] = b * cosines[i + half_dim] + a * sines[i + half_dim];
    }
}

static void put(char *x, long i, float value, long bf16) { store(x, i, 1, all(value), bf16); }

/* Norm and rotate the heads of qkv; queries go to q [kv head][row, head of the group][head_dim], the rest to the cache */
static void place_heads(const Pass *p, const Layer *l, const Scratch *s, char *keys, char *values) {
    const long d = p->head_dim, group = p->heads / p->kv_heads, step = p->bf16 ? 2 : 1, size = p->bf16 ? 2 : 4;
    const long heads = p->heads + 2 * p->kv_heads;
#pragma omp for schedule(static) collapse(2)
    for (long n = 0; n < p->rows; n++)
        for (long h = 0; h < heads; h++) {
            float *x = s->qkv + (n * heads + h) * d;
            const float *norm = h < p->heads ? l->q_norm : l->k_norm;
            long k = h - p->heads, row = p->start + n, tile = row / TILE, lane = row % TILE;
            if (h < p->heads + p->kv_heads) {
                if (norm) rms_norm_row((char *)x, norm, d, p->eps, 0, (char *)x);
                rotate(x, p->cosines + n * d, p->sines + n * d, d / 2);
            }
            if (h < p->heads) {
                char *to = s->q + ((h / group * p->rows + n) * group + h % group) * d * size;
                for (long i = 0; i < d; i += LANES) store(to, i, LANES, at(x + i), p->bf16);
            } else if (k < p->kv_heads) {
                char *to = keys + (k * p->capacity + tile * TILE) * d * size;
                for (long i = 0; i < d; i++) put(to, (i / step * TILE + lane) * step + i % step, x[i], p->bf16);
            } else {
                char *to = values + (k - p->kv_heads) * tiles(d) * TILE * p->capacity * size;
                for (long i = 0; i < d; i += LANES)
                    store(to, (i / TILE * p->capacity + row) * TILE + i % TILE, LANES, at(x + i), p->bf16);
            }
        }
}

/* x = e^(scale * (x - max x)), not yet divided by its sum, which is returned. x has room for whole vectors. */
static float softmax(float *x, long count, float scale) {
    float top = -INFINITY;
    for (long i = count; i % LANES; i++) x[i] = -INFINITY;
    for (long i = 0; i < count; i++) top = x[i] > top ? x[i] : top;
    vec sum = {0};
    for (long i = 0; i < count; i += LANES) {
        vec e = exponential((at(x + i) - top) * scale);
        *(vec_at *)(x + i) = e;
        sum += e;
    }
    return total(sum);
}

/* Attention of a few query rows m (row n, head of the group) of one kv head. All of them see the cache rows before
 * `common`; each sees its own path behind that. Scores are computed for all rows and then gathered along the path, so
 * softmax and P V run over the visible positions in their order, wherever these lie. */
static void attend(const Pass *p, const Scratch *s, const char *q, const char *keys, const char *values, long m,
                   int block, char *out) {
    const long d = p->head_dim, group = p->heads / p->kv_heads, size = p->bf16 ? 2 : 4, stride = s->score_stride;
    const long first = m / group, last = (m + block - 1) / group, steps = p->bf16 ? d / 2 : d;
    const long common = p->start + (p->parents ? 0 : first + 1);
    float *scores = s->scores + omp_get_thread_num() * ROWS * stride, sums[ROWS];
    long *path[ROWS], length[ROWS];
    vec sum[ROWS][2];

    for (long t = 0; t < tiles(p->start + last + 1); t++) {
        memset(sum, 0, sizeof sum);
        dot(p->bf16 ? PAIRS : FLOATS, block, steps, keys + t * TILE * d * size, q + m * d * size, steps, sum);
        for (int r = 0; r < block; r++)
            for (int v = 0; v < 2; v++) *(vec_at *)(scores + r * stride + t * TILE + v * LANES) = sum[r][v];
    }
    for (int r = 0; r < block; r++) {
        path[r] = s->path + (omp_get_thread_num() * ROWS + r + 1) * p->rows;
        length[r] = 0;
        for (long n = (m + r) / group; p->start + n >= common; n = p->parents ? p->parents[n] : n - 1)
            *--path[r] = p->start + n, length[r]++;
        for (long i = 0; i < length[r]; i++) scores[r * stride + common + i] = scores[r * stride + path[r][i]];
        sums[r] = softmax(scores + r * stride, common + length[r], 1 / sqrtf(d));
    }
    for (long t = 0; t < tiles(d); t++) {
        const char *tile = values + t * p->capacity * TILE * size;
        memset(sum, 0, sizeof sum);
        dot(p->bf16 ? MIXED : FLOATS, block, common, tile, scores, stride, sum);
        for (int r = 0; r < block; r++) {
            for (long i = 0; i < length[r]; i++)
                dot(p->bf16 ? MIXED : FLOATS, 1, 1, tile + path[r][i] * TILE * size, scores + r * stride + common + i, 0,
                    sum + r);
            long column = t * TILE, to = ((m + r) / group * p->heads + (m + r) % group) * d + column;
            for (int v = 0; v < 2; v++)
                store(out, to + v * LANES, d - column - v * LANES, sum[r][v] / sums[r], p->bf16);
        }
    }
}

static void attention(const Pass *p, const Scratch *s, const char *keys, const char *values) {
    const long d = p->head_dim, group = p->heads / p->kv_heads, size = p->bf16 ? 2 : 4, queries = p->rows * group;
#pragma omp for schedule(static, 1) collapse(2)
    for (long k = 0; k < p->kv_heads; k++)
        for (long m = 0; m < queries; m += ROWS)
            attend(p, s, s->q + k * queries * d * size, keys + k * p->capacity * d * size,
                   values + k * tiles(d) * TILE * p->capacity * size, m, queries - m < ROWS ? queries - m : ROWS,
                   s->attended + k * group * d * size);
}

static void layer(const Pass *p, const Layer *l, const Scratch *s, long index, char *x) {
    const long size = p->bf16 ? 2 : 4;
    char *keys = p->keys + index * p->kv_heads * p->capacity * p->head_dim * size;
    char *values = p->values + index * p->kv_heads * p->capacity * tiles(p->head_dim) * TILE * size;
    rms_norm_rows(p, x, l->attention_norm, s->normed);
    linear_rows(&l->qkv, p->bf16, p->rows, s->normed, (char *)s->qkv, 0, 0);
    place_heads(p, l, s, keys, values);
    attention(p, s, keys, values);
    linear_rows(&l->out, p->bf16, p->rows, s->attended, x, p->bf16, 1);
    rms_norm_rows(p, x, l->mlp_norm, s->normed);
    swiglu_rows(&l->gate_up, p, s->normed, s->product);
    linear_rows(&l->down, p->bf16, p->rows, s->product, x, p->bf16, 1);
}

/* ---- what Python calls ---- */

long tile(void) { return TILE; }

/* x [rows][width]: the residual stream before layer `first`, afterwards that behind layer first + count - 1.
 * Returns 0, or 1 where memory is short. */
long run_layers(const Pass *p, const Layer *const *layers, long first, long count, char *x) {
    Scratch s = {.score_stride = tiles(p->start + p->rows) * TILE};
    const long inner = p->heads * p->head_dim, heads = p->heads + 2 * p->kv_heads;
    const long size[] = {p->rows * p->width, p->rows * inner, p->rows * inner, p->rows * p->mlp_width,
                         p->rows * heads * p->head_dim, p->threads * ROWS * s.score_stride,
                         2 * p->threads * ROWS * p->rows};
    void **const part[] = {(void **)&s.normed, (void **)&s.q, (void **)&s.attended, (void **)&s.product,
                           (void **)&s.qkv, (void **)&s.scores, (void **)&s.path};
    long need = 64;
    for (int i = 0; i < 7; i++) need += (4 * size[i] + 63) / 64 * 64;
    char *block = malloc(need), *next = (char *)(((uintptr_t)block + 63) / 64 * 64);
    if (!block) return 1;
    for (int i = 0; i < 7; next += (4 * size[i++] + 63) / 64 * 64) *part[i] = next;
#pragma omp parallel num_threads(p->threads)
    for (long i = first; i < first + count; i++) layer(p, layers[i], &s, i, x);
    free(block);
    return 0;
}

void linear(const Linear *l, long threads, long rows, long bf16, const char *x, char *y, long y_bf16) {
#pragma omp parallel num_threads(threads)
    linear_rows(l, bf16, rows, x, y, y_bf16, 0);
}

void rms_norm(const float *weight, long rows, long width, double eps, long bf16, const char *x, char *y) {
    for (long n = 0; n < rows; n++)
        rms_norm_row(x + n * width * (bf16 ? 2 : 4), weight, width, eps, bf16, y + n * width * (bf16 ? 2 : 4));
}
