/* The Transformer's CPU operators in bf16 and fp32, compiled and called by native.py.
 *
 * Every number is summed by one thread in one order, which depends neither on how many rows (n) are computed together,
 * nor on the number of threads, nor, in attention, on where in the cache a key lies. So a row has the same bits alone,
 * in a chain and in a tree. One kernel, dot_block(), does the sums of linear layers, of q K^T and of P V.
 *
 * Weights are packed in tiles of TILE outputs: [tile][step][TILE], a step being one input (fp32) or two (bf16): 4 bytes.
 * A lane of a vector register belongs to one output and a register to one row, so nothing is summed across lanes, and a
 * tile is read from memory once for all rows. Keys are cached in the same layout (outputs are positions), values in
 * [tile of head_dim][position][TILE] (steps are positions). */
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8 }; /* ROWS x 2 sums must fit the registers, and be enough to hide a multiply-add's latency */
#elif defined(__AVX2__) && defined(__FMA__)
enum { LANES = 8, ROWS = 6 };
#else
enum { LANES = 4, ROWS = 6 };
#endif
enum { TILE = 2 * LANES, AHEAD = 6144 }; /* AHEAD: bytes by which weights are fetched into the L2 cache in advance */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t half __attribute__((vector_size(2 * LANES)));
typedef vec vec_at __attribute__((aligned(1), may_alias)); /* the same in memory, anywhere */
typedef half half_at __attribute__((aligned(1), may_alias));
typedef uint32_t unit __attribute__((may_alias)); /* 4 bytes: one fp32 or two bf16 numbers */

typedef struct {
    const char *weight; /* packed */
    const float *bias;  /* whole tiles, or NULL */
    long inputs, outputs;
} Linear;

typedef struct {
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm; /* the last two may be NULL */
    Linear qkv, out, gate_up, down;
} Layer;

typedef struct {
    long threads, bf16, width, heads, kv_heads, head_dim, mlp_width;
    double eps;
    long rows, start, capacity;   /* this pass's n rows become the cache rows start .. start + n, of capacity */
    const long *parents;          /* of each row: another row of this pass, or -1. NULL: a chain */
    const float *cosines, *sines; /* [n][head_dim], the sines of the first half negated */
    char *keys, *values;          /* of layer 0 */
} Pass;

/* ---- threads ---- */

/* A step of a pass, cut into pieces. Threads take pieces until none is left and go on when all are done: one that the
 * system has put aside is waited for only if it holds a piece, so on a busy machine the others do its work. */
typedef struct {
    _Alignas(64) atomic_long taken, done;
} Step;

typedef struct {
    Step *step;
    long count, pieces, piece, from, to;
} Share;

static int take(Share *s) {
    if (s->piece >= 0) atomic_fetch_add_explicit(&s->step->done, 1, memory_order_release);
    s->piece = atomic_fetch_add_explicit(&s->step->taken, 1, memory_order_relaxed);
    s->from = s->piece * s->count / s->pieces;
    s->to = (s->piece + 1) * s->count / s->pieces;
    if (s->piece < s->pieces) return 1;
    for (long i = 0; atomic_load_explicit(&s->step->done, memory_order_acquire) < s->pieces; i++)
        if (i > 2000) sched_yield();
#ifdef __SSE2__
        else _mm_pause();
#endif
    return 0;
}

/* The loop over i = 0 .. count - 1, shared by the threads that run it with the same step. */
#define SHARED(step, count, pieces, i)                                                                \
    for (Share share_ = {step, count, (pieces) < (count) ? (pieces) : (count), -1, 0, 0}; take(&share_);) \
        for (long i = share_.from; i < share_.to; i++)

/* ---- numbers ---- */

static inline long least(long a, long b) { return a < b ? a : b; }
static inline long tiles(long outputs) { return (outputs + TILE - 1) / TILE; }
static inline long size_of(long bf16) { return bf16 ? 2 : 4; }
static inline vec all(float x) { return x - (vec){0}; }
static inline vec at(const float *x) { return *(const vec_at *)x; }
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

/* sum + both products of bf16 pairs */
static inline vec multiply_add_pairs(vec a, vec b, vec sum) {
#if defined(__AVX512BF16__)
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    const bits upper = (bits){0} + 0xffff0000u;
    sum = multiply_add((vec)((bits)a << 16), (vec)((bits)b << 16), sum);
    return multiply_add((vec)((bits)a & upper), (vec)((bits)b & upper), sum);
#endif
}

static inline vec load(const char *x, long i, long bf16) {
    if (!bf16) return at((const float *)x + i);
    return (vec)(__builtin_convertvector(*(const half_at *)((const uint16_t *)x + i), bits) << 16);
}

/* x[i .. i + LANES] = v, in bf16 rounded to nearest even; at most `room` of them */
static inline void store(char *x, long i, long room, vec v, long bf16) {
    bits rounded = (bits)v + 0x7fff + ((bits)v >> 16 & 1);
    rounded = (bits)pick((bits)(v == v), (vec)rounded, (vec)((bits){0} + 0x7fc00000u));
    half narrow = __builtin_convertvector(rounded >> 16, half);
    const void *from = bf16 ? (const void *)&narrow : (const void *)&v;
    x += i * size_of(bf16);
    if (room < LANES)
        memcpy(x, from, room > 0 ? room * size_of(bf16) : 0);
    else if (bf16)
        *(half_at *)x = narrow;
    else
        *(vec_at *)x = v;
}

static float total(vec v) {
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++) v[i] += v[i + step];
    return v[0];
}

/* e^x to about 1 ulp for -87 < x < 88, clamped beyond: 2^n times the Taylor polynomial of what is left of x */
static vec exponential(vec x) {
    const float terms[] = {1 / 720.f, 1 / 120.f, 1 / 24.f, 1 / 6.f, 0.5f, 1, 1};
    x = pick((bits)(x > -87), x, all(-87));
    x = pick((bits)(x < 88), x, all(88));
    vec shifted = multiply_add(x, all(1.44269504f), all(12582912)); /* 1.5 * 2^23 leaves n in the lowest bits */
    vec n = shifted - 12582912, p = all(1 / 5040.f);
    x = multiply_add(n, all(2.12194440e-4f), multiply_add(n, all(-0.693359375f), x)); /* ln 2 in two parts */
    for (int i = 0; i < 7; i++) p = multiply_add(p, x, all(terms[i]));
    return (vec)((bits)p + ((bits)shifted << 23));
}

/* ---- the kernel ---- */

enum { FLOATS, PAIRS, MIXED }; /* weights and inputs: both fp32; both bf16, in pairs; weights bf16 and inputs fp32 */

/* sum[row] += weights x input[row]. The number of rows is a constant, so that the sums stay in registers; each row's
 * arithmetic is the same for all of them. */
static inline __attribute__((always_inline)) void dot_block(const int kind, const int rows, long steps, const char *w,
                                                            const unit *x, long stride, vec (*sum)[2]) {
    const long size = kind == MIXED ? 2 * TILE : 4 * TILE;
    vec s[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) s[r][0] = sum[r][0], s[r][1] = sum[r][1];
    for (long i = 0; i < steps; i++) {
        __builtin_prefetch(w + i * size + AHEAD, 0, 2);
        if (size > 64) __builtin_prefetch(w + i * size + AHEAD + 64, 0, 2);
        vec w0 = load(w, i * TILE, kind == MIXED), w1 = load(w, i * TILE + LANES, kind == MIXED);
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

#define BLOCK(kind, rows)                                                              \
    case 8 * kind + rows - 1:                                                          \
        dot_block(kind, rows < ROWS ? rows : ROWS, steps, w, (const unit *)x, stride, sum); \
        break;
#define BLOCKS(kind) \
    BLOCK(kind, 1) BLOCK(kind, 2) BLOCK(kind, 3) BLOCK(kind, 4) BLOCK(kind, 5) BLOCK(kind, 6) BLOCK(kind, 7) BLOCK(kind, 8)

static void dot(int kind, int rows, long steps, const char *w, const void *x, long stride, vec (*sum)[2]) {
    switch (8 * kind + rows - 1) { BLOCKS(FLOATS) BLOCKS(PAIRS) BLOCKS(MIXED) }
}

/* ---- operators; those with a step are run by all threads together ---- */

static void rms_norm_row(const char *x, const float *weight, long width, float eps, long bf16, char *y) {
    vec squares = {0};
    for (long i = 0; i < width; i += LANES) {
        vec v = load(x, i, bf16);
        squares = multiply_add(v, v, squares);
    }
    float scale = 1 / sqrtf(total(squares) / width + eps);
    for (long i = 0; i < width; i += LANES) store(y, i, LANES, load(x, i, bf16) * scale * at(weight + i), bf16);
}

static void rms_norm_rows(Step *step, const Pass *p, const char *x, const float *weight, char *y) {
    long row = p->width * size_of(p->bf16);
    SHARED(step, p->rows, p->threads, n) rms_norm_row(x + n * row, weight, p->width, p->eps, p->bf16, y + n * row);
}

/* sum = bias + tile `t` of the weights x each of a few inputs */
static void linear_tile(const Linear *l, long bf16, long t, int rows, const char *x, vec (*sum)[2]) {
    long steps = bf16 ? l->inputs / 2 : l->inputs;
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++) sum[r][v] = l->bias ? at(l->bias + t * TILE + v * LANES) : (vec){0};
    dot(bf16 ? PAIRS : FLOATS, rows, steps, l->weight + t * steps * TILE * 4, x, steps, sum);
}

/* y = x W^T + b, or that added to y; y may be fp32 where x is bf16 */
static void linear_rows(Step *step, long threads, const Linear *l, long bf16, long rows, const char *x, char *y,
                        long y_bf16, int add) {
    SHARED(step, tiles(l->outputs), threads, t)
    for (long n = 0; n < rows; n += ROWS) {
        vec sum[ROWS][2];
        int block = least(rows - n, ROWS);
        linear_tile(l, bf16, t, block, x + n * l->inputs * size_of(bf16), sum);
        for (int r = 0; r < block; r++)
            for (int v = 0; v < 2; v++) {
                long column = t * TILE + v * LANES, i = (n + r) * l->outputs + column;
                store(y, i, l->outputs - column, add ? load(y, i, y_bf16) + sum[r][v] : sum[r][v], y_bf16);
            }
    }
}

/* y = silu(gate x) * (up x): the gate is the first half of the outputs */
static void swiglu_rows(Step *step, const Linear *l, const Pass *p, const char *x, char *y) {
    const long count = tiles(p->mlp_width);
    SHARED(step, count, p->threads, t)
    for (long n = 0; n < p->rows; n += ROWS) {
        vec gate[ROWS][2], up[ROWS][2];
        int block = least(p->rows - n, ROWS);
        linear_tile(l, p->bf16, t, block, x + n * l->inputs * size_of(p->bf16), gate);
        linear_tile(l, p->bf16, count + t, block, x + n * l->inputs * size_of(p->bf16), up);
        for (int r = 0; r < block; r++)
            for (int v = 0; v < 2; v++) {
                vec product = gate[r][v] / (1 + exponential(-gate[r][v])) * up[r][v];
                store(y, (n + r) * p->mlp_width + t * TILE + v * LANES, LANES, product, p->bf16);
            }
    }
}

/* Rotate the pairs (i, i + half) of one head. */
static void rotate(float *x, const float *cosines, const float *sines, long half) {
    for (long i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosines[i] + b * sines[i];
        x[i + half] = b * cosines[i + half] + a * sines[i + half];
    }
}

/* Norm and rotate the heads of qkv [n][head][head_dim]. Queries go to q [kv head][n][head of the group][head_dim], keys
 * and values to the cache. */
static void place_heads(Step *step, const Pass *p, const Layer *l, float *qkv, char *q, char *keys, char *values) {
    const long d = p->head_dim, group = p->heads / p->kv_heads, heads = p->heads + 2 * p->kv_heads;
    const long size = size_of(p->bf16);
    SHARED(step, p->rows * heads, p->threads, i) {
        const long n = i / heads, h = i % heads, row = p->start + n;
        const float *norm = h < p->heads ? l->q_norm : l->k_norm;
        float *x = qkv + i * d;
        char *rounded = (char *)x, *to; /* in place: nothing is overwritten before it is read */
        if (h < p->heads + p->kv_heads) {
            if (norm) rms_norm_row((char *)x, norm, d, p->eps, 0, (char *)x);
            rotate(x, p->cosines + n * d, p->sines + n * d, d / 2);
        }
        for (long j = 0; j < d; j += LANES) store(rounded, j, LANES, at(x + j), p->bf16);
        if (h < p->heads) {
            memcpy(q + ((h / group * p->rows + n) * group + h % group) * d * size, rounded, d * size);
        } else if (h < p->heads + p->kv_heads) {
            to = keys + ((h - p->heads) * p->capacity + row / TILE * TILE) * d * size;
            for (long j = 0; j < d * size / 4; j++) ((unit *)to)[j * TILE + row % TILE] = ((unit *)rounded)[j];
        } else {
            to = values + ((h - p->heads - p->kv_heads) * tiles(d) * p->capacity + row) * TILE * size;
            for (long j = 0; j < d; j += TILE, to += p->capacity * TILE * size)
                memcpy(to, rounded + j * size, least(TILE, d - j) * size);
        }
    }
}

/* x = e^(scale * (x - max x)), whose sum is returned. x has room for whole vectors. */
static float softmax(float *x, long count, float scale) {
    vec tops = all(-INFINITY), sum = {0};
    for (long i = count; i % LANES; i++) x[i] = -INFINITY;
    for (long i = 0; i < count; i += LANES) tops = pick((bits)(at(x + i) > tops), at(x + i), tops);
    float top = tops[0];
    for (int i = 1; i < LANES; i++) top = tops[i] > top ? tops[i] : top;
    for (long i = 0; i < count; i += LANES) sum += *(vec_at *)(x + i) = exponential((at(x + i) - top) * scale);
    return total(sum);
}

typedef struct { /* of one thread, for a block of query rows */
    float *scores;
    long *path, stride; /* of scores */
} Workspace;

/* Attention of query rows m .. m + block (m = n x group + head of the group) of one kv head. All of them see the cache
 * rows before `common`, and each its own path behind that. Scores are computed for all cache rows and then gathered
 * along the path, so that softmax and P V run over the visible positions in their order, wherever these lie. */
static void attend(const Pass *p, Workspace w, const char *q, const char *keys, const char *values, long m, int block,
                   char *out) {
    const long d = p->head_dim, group = p->heads / p->kv_heads, size = size_of(p->bf16), steps = d * size / 4;
    const long first = m / group, last = (m + block - 1) / group, common = p->start + (p->parents ? 0 : first + 1);
    const int with_keys = p->bf16 ? PAIRS : FLOATS, with_values = p->bf16 ? MIXED : FLOATS;
    float sums[ROWS];
    long *path[ROWS], length[ROWS];
    vec sum[ROWS][2];

    for (long t = 0; t < tiles(p->start + last + 1); t++) {
        memset(sum, 0, sizeof sum);
        dot(with_keys, block, steps, keys + t * TILE * d * size, q + m * d * size, steps, sum);
        for (int r = 0; r < block; r++) memcpy(w.scores + r * w.stride + t * TILE, sum[r], sizeof sum[r]);
    }
    for (int r = 0; r < block; r++) {
        float *scores = w.scores + r * w.stride;
        path[r] = w.path + (r + 1) * p->rows;
        for (long n = (m + r) / group; p->start + n >= common; n = p->parents ? p->parents[n] : n - 1)
            *--path[r] = p->start + n;
        length[r] = w.path + (r + 1) * p->rows - path[r];
        for (long i = 0; i < length[r]; i++) scores[common + i] = scores[path[r][i]];
        sums[r] = softmax(scores, common + length[r], 1 / sqrtf(d));
    }
    for (long t = 0; t < tiles(d); t++) {
        const char *tile = values + t * p->capacity * TILE * size;
        memset(sum, 0, sizeof sum);
        dot(with_values, block, common, tile, w.scores, w.stride, sum);
        for (int r = 0; r < block; r++) {
            const float *scores = w.scores + r * w.stride + common;
            long column = t * TILE, to = ((m + r) / group * p->heads + (m + r) % group) * d + column;
            for (long i = 0; i < length[r]; i++)
                dot(with_values, 1, 1, tile + path[r][i] * TILE * size, scores + i, 0, sum + r);
            for (int v = 0; v < 2; v++)
                store(out, to + v * LANES, d - column - v * LANES, sum[r][v] / sums[r], p->bf16);
        }
    }
}

static void attention(Step *step, const Pass *p, Workspace w, const char *q, const char *keys, const char *values,
                      char *out) {
    const long d = p->head_dim, group = p->heads / p->kv_heads, size = size_of(p->bf16), queries = p->rows * group;
    const long blocks = p->kv_heads * ((queries + ROWS - 1) / ROWS);
    SHARED(step, blocks, blocks, i) { /* of a prompt's rows the last cost most, so no equal shares */
        const long k = i % p->kv_heads, m = i / p->kv_heads * ROWS;
        attend(p, w, q + k * queries * d * size, keys + k * p->capacity * d * size,
               values + k * tiles(d) * TILE * p->capacity * size, m, least(queries - m, ROWS), out + k * group * d * size);
    }
}

enum { STEPS = 8 }; /* of a layer */

typedef struct { /* of one pass, shared by the threads */
    float *qkv;
    char *normed, *q, *attended, *product;
} Buffers;

static void layer(Step *step, const Pass *p, const Layer *l, const Buffers *b, Workspace w, long index, char *x) {
    const long cached = index * p->kv_heads * p->capacity * size_of(p->bf16);
    char *keys = p->keys + cached * p->head_dim, *values = p->values + cached * tiles(p->head_dim) * TILE;
    const long threads = p->threads, rows = p->rows, bf16 = p->bf16;
    rms_norm_rows(step++, p, x, l->attention_norm, b->normed);
    linear_rows(step++, threads, &l->qkv, bf16, rows, b->normed, (char *)b->qkv, 0, 0);
    place_heads(step++, p, l, b->qkv, b->q, keys, values);
    attention(step++, p, w, b->q, keys, values, b->attended);
    linear_rows(step++, threads, &l->out, bf16, rows, b->attended, x, bf16, 1);
    rms_norm_rows(step++, p, x, l->mlp_norm, b->normed);
    swiglu_rows(step++, &l->gate_up, p, b->normed, b->product);
    linear_rows(step++, threads, &l->down, bf16, rows, b->product, x, bf16, 1);
}

/* ---- what Python calls ---- */

/* Waking threads costs microseconds: a small step (in multiplications) is done by one. */
static int crew(long threads, long work) { return work < 1 << 17 ? 1 : threads; }

long tile(void) { return TILE; }

/* x [n][width]: the residual stream before layer `first`, afterwards the one behind the last of `count` layers.
 * Returns 0, or 1 if memory is short. */
long run_layers(const Pass *p, const Layer *const *layers, long first, long count, char *x) {
    const long rows = p->rows, inner = p->heads * p->head_dim, qkv = inner + 2 * p->kv_heads * p->head_dim;
    const long stride = tiles(p->start + rows) * TILE, steps = STEPS * count;
    const long workspace = ROWS * (4 * stride + sizeof(long) * rows); /* bytes per thread */
    const long shared = 4 * rows * (qkv + p->width + 2 * inner + p->mlp_width);
    char *memory = aligned_alloc(64, (steps * sizeof(Step) + shared + p->threads * workspace + 63) / 64 * 64);
    if (!memory) return 1;
    memset(memory, 0, steps * sizeof(Step));
    Buffers b = {.qkv = (float *)(memory + steps * sizeof(Step))};
    b.normed = (char *)(b.qkv + rows * qkv);
    b.q = b.normed + 4 * rows * p->width;
    b.attended = b.q + 4 * rows * inner;
    b.product = b.attended + 4 * rows * inner;
    const long weights = p->width * (qkv + inner + 3 * p->mlp_width);
#pragma omp parallel num_threads(crew(p->threads, rows * weights))
    {
        char *own = b.product + 4 * rows * p->mlp_width + omp_get_thread_num() * workspace;
        Workspace w = {(float *)own, (long *)(own + ROWS * 4 * stride), stride};
        for (long i = 0; i < count; i++)
            layer((Step *)memory + STEPS * i, p, layers[first + i], &b, w, first + i, x);
    }
    free(memory);
    return 0;
}

/* y [n][outputs] = x [n][inputs] W^T + b; y may be fp32 where x is bf16 */
void linear(const Linear *l, long threads, long rows, long bf16, const char *x, char *y, long y_bf16) {
    Step step = {0};
#pragma omp parallel num_threads(crew(threads, rows * l->inputs * l->outputs))
    linear_rows(&step, threads, l, bf16, rows, x, y, y_bf16, 0);
}

void rms_norm(const float *weight, long rows, long width, double eps, long bf16, const char *x, char *y) {
    const long row = width * size_of(bf16);
    for (long n = 0; n < rows; n++) rms_norm_row(x + n * row, weight, width, eps, bf16, y + n * row);
}
