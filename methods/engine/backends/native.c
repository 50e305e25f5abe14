/* The Transformer's CPU operators in bf16 and fp32, compiled and called by native.py.
 *
 * Every number is summed by one thread in one order, which depends neither on how many rows (n) are computed together,
 * nor on the number of threads, nor, in attention, on where in the cache a key lies. So a row has the same bits alone,
 * in a chain and in a tree. One kernel, dot(), does the sums of linear layers, of q K^T and of P V.
 *
 * Weights are packed in tiles, see native.h. Keys are cached in that layout (outputs are positions), values in
 * [tile of head_dim][position][TILE] (steps are positions). */
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "linear.h"

typedef struct {
    const float *attention_norm, *mlp_norm;       /* the first may be NULL: x is taken as it is */
    const float *beside_norm, *q_norm, *k_norm;   /* NULL where the layer has none */
    Linear qkv, out, gate_up, down;
} Layer;

typedef struct {
    long threads, bf16, width, heads, kv_heads, head_dim, mlp_width, beside_width;
    double eps;
    long rows;                    /* n, which become the cache rows start + known ... start + known + n */
    long start, known, capacity;  /* committed rows, provisional ones of an earlier pass behind them, all in the cache */
    const long *parents;          /* of each provisional row, the known ones first: another one, or -1. NULL: a chain */
    const float *cosines, *sines; /* [n][head_dim], the sines of the first half negated */
    char *keys, *values;          /* of layer 0 */
    const char *beside;           /* [n][beside_width]: what layers with a beside_norm read before x */
} Pass;

typedef struct { /* of one pass, shared by its threads; of each thread, for a block of query rows */
    float *qkv, *scores;
    char *normed, *q, *attended, *product; /* q in fp32 where these are WIDE */
    long *path, stride; /* of scores */
    char *prepared;     /* room for Inputs, of each thread */
} Buffers;

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
        i < 2000 ? relax() : (void)sched_yield();
    return 0;
}

/* The loop over i = 0 .. count - 1, shared by the threads that run it with the same step. */
#define SHARED(step, count, pieces, i)                                                                    \
    for (Share share_ = {step, count, (pieces) < (count) ? (pieces) : (count), -1, 0, 0}; take(&share_);) \
        for (long i = share_.from; i < share_.to; i++)

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

/* y [n][qkv.inputs] = what q, k and v are made of: the normed x, behind the normed rows beside it if the layer has them */
static void attention_inputs(Step *step, const Pass *p, const Layer *l, const char *x, char *y) {
    const long size = size_of(p->bf16), row = p->width * size, beside = l->beside_norm ? p->beside_width * size : 0;
    SHARED(step, p->rows, p->threads, n) {
        char *to = y + n * (beside + row);
        if (beside) rms_norm_row(p->beside + n * beside, l->beside_norm, p->beside_width, p->eps, p->bf16, to);
        to += beside;
        if (l->attention_norm)
            rms_norm_row(x + n * row, l->attention_norm, p->width, p->eps, p->bf16, to);
        else
            memcpy(to, x + n * row, row);
    }
}

/* y = x W^T + b, or that added to y; y may be fp32 where x is bf16 */
static void linear_rows(Step *step, long threads, const Linear *l, long bf16, long rows, const char *x, char *memory,
                        char *y, long y_bf16, int add) {
    Inputs in = {.x = x, .bf16 = bf16, .rows = rows};
    const long most_rows = block_of(rows, ROWS);
    SHARED(step, tiles(l->outputs), threads, t)
    for (long n = 0; n < rows; n += most_rows) {
        prepare(&in, l, memory);
        vec sum[ROWS][2];
        int block = least(rows - n, most_rows);
        linear_tile(l, &in, t, n, block, sum);
        for (int r = 0; r < block; r++)
            for (int v = 0; v < 2; v++) {
                long column = t * TILE + v * LANES, i = (n + r) * l->outputs + column;
                store(y, i, l->outputs - column, add ? load(y, i, y_bf16) + sum[r][v] : sum[r][v], y_bf16);
            }
    }
}

/* y = silu(gate x) * (up x): the gate is the first half of the outputs */
static void swiglu_rows(Step *step, const Linear *l, const Pass *p, const char *x, char *memory, char *y) {
    Inputs in = {.x = x, .bf16 = p->bf16, .rows = p->rows};
    const long count = tiles(p->mlp_width), most_rows = block_of(p->rows, ROWS);
    SHARED(step, count, p->threads, t)
    for (long n = 0; n < p->rows; n += most_rows) {
        prepare(&in, l, memory);
        vec gate[ROWS][2], up[ROWS][2];
        int block = least(p->rows - n, most_rows);
        linear_tile(l, &in, t, n, block, gate);
        linear_tile(l, &in, count + t, n, block, up);
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
static void place_heads(Step *step, const Pass *p, const Layer *l, const Buffers *b, char *keys, char *values) {
    const long d = p->head_dim, size = size_of(p->bf16), group = p->heads / p->kv_heads;
    const long narrow = p->bf16 && !WIDE, q_size = size_of(narrow);
    const long first_value = p->heads + p->kv_heads, heads = first_value + p->kv_heads;
    SHARED(step, p->rows * heads, p->threads, i) {
        const long n = i / heads, h = i % heads, row = p->start + p->known + n;
        const float *norm = h < p->heads ? l->q_norm : l->k_norm;
        float *x = b->qkv + i * d;
        char *rounded = (char *)x, *to; /* in place: nothing is overwritten before it is read */
        if (h < first_value && norm) rms_norm_row((char *)x, norm, d, p->eps, 0, (char *)x);
        if (h < first_value) rotate(x, p->cosines + n * d, p->sines + n * d, d / 2);
        for (long j = 0; j < d; j += LANES) store(rounded, j, LANES, at(x + j), p->bf16);
        if (h < p->heads) {
            to = b->q + ((h / group * p->rows + n) * group + h % group) * d * q_size;
            for (long j = 0; j < d; j += LANES) store(to, j, d - j, load(rounded, j, p->bf16), narrow);
        } else if (h < first_value) {
            to = keys + ((h - p->heads) * p->capacity + row / TILE * TILE) * d * size;
            for (long j = 0; j < d * size / 4; j++) ((unit *)to)[j * TILE + row % TILE] = ((unit *)rounded)[j];
        } else {
            to = values + ((h - first_value) * tiles(d) * p->capacity + row) * TILE * size;
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

/* Attention of a block of query rows m, m + 1, ... (m = n x group + head of the group) of kv head k. All of them see
 * the cache rows before `common`, and each its own path behind that. Scores are computed for all cache rows and then
 * gathered along the path, so that softmax and P V run over the visible positions in order, wherever these lie. */
static void attend(const Pass *p, const Buffers *b, const char *keys, const char *values, long k, long m) {
    const long d = p->head_dim, size = size_of(p->bf16), steps = d * size / 4, group = p->heads / p->kv_heads;
    const long q_row = d * size_of(p->bf16 && !WIDE);
    const int block = least(p->rows * group - m, ROWS);
    const long first = m / group + p->known, last = (m + block - 1) / group + p->known; /* provisional rows */
    const long common = p->start + (p->parents ? 0 : first + 1), provisional = p->known + p->rows;
    const char *q = b->q + (k * p->rows * group + m) * q_row;
    float sums[ROWS];
    long *path[ROWS], length[ROWS];
    vec sum[ROWS][2];
    keys += k * p->capacity * d * size;
    values += k * p->capacity * tiles(d) * TILE * size;

    for (long t = 0; t < tiles(p->start + last + 1); t++) {
        memset(sum, 0, sizeof sum);
        dot(p->bf16 ? PAIRS : FLOATS, block, steps, keys + t * TILE * d * size, q, q_row / 4, sum);
        for (int r = 0; r < block; r++) memcpy(b->scores + r * b->stride + t * TILE, sum[r], sizeof sum[r]);
    }
    for (int r = 0; r < block; r++) {
        float *scores = b->scores + r * b->stride;
        path[r] = b->path + (r + 1) * provisional;
        for (long n = (m + r) / group + p->known; p->start + n >= common; n = p->parents ? p->parents[n] : n - 1)
            *--path[r] = p->start + n;
        length[r] = b->path + (r + 1) * provisional - path[r];
        for (long i = 0; i < length[r]; i++) scores[common + i] = scores[path[r][i]];
        sums[r] = softmax(scores, common + length[r], 1 / sqrtf(d));
    }
    for (long t = 0; t < tiles(d); t++, values += p->capacity * TILE * size) {
        const int kind = p->bf16 ? MIXED : FLOATS;
        memset(sum, 0, sizeof sum);
        dot(kind, block, common, values, b->scores, b->stride, sum);
        for (int r = 0; r < block; r++) {
            const float *scores = b->scores + r * b->stride + common;
            const long n = (m + r) / group, h = k * group + (m + r) % group;
            for (long i = 0; i < length[r]; i++)
                dot(kind, 1, 1, values + path[r][i] * TILE * size, scores + i, 0, sum + r);
            for (long v = 0, j = t * TILE; v < 2; v++, j += LANES)
                store(b->attended, (n * p->heads + h) * d + j, d - j, sum[r][v] / sums[r], p->bf16);
        }
    }
}

static void attention(Step *step, const Pass *p, const Buffers *b, const char *keys, const char *values) {
    const long blocks = (p->rows * (p->heads / p->kv_heads) + ROWS - 1) / ROWS * p->kv_heads;
    SHARED(step, blocks, blocks, i) /* not in equal shares: of a prompt's rows the last cost most */
        attend(p, b, keys, values, i % p->kv_heads, i / p->kv_heads * ROWS);
}

enum { STEPS = 8 }; /* of a layer */

static void layer(Step *step, const Pass *p, const Layer *l, const Buffers *b, long index, char *x) {
    const long threads = p->threads, rows = p->rows, bf16 = p->bf16;
    const long cached = index * p->kv_heads * p->capacity * size_of(bf16);
    char *keys = p->keys + cached * p->head_dim, *values = p->values + cached * tiles(p->head_dim) * TILE;
    attention_inputs(step++, p, l, x, b->normed);
    linear_rows(step++, threads, &l->qkv, bf16, rows, b->normed, b->prepared, (char *)b->qkv, 0, 0);
    place_heads(step++, p, l, b, keys, values);
    attention(step++, p, b, keys, values);
    linear_rows(step++, threads, &l->out, bf16, rows, b->attended, b->prepared, x, bf16, 1);
    rms_norm_rows(step++, p, x, l->mlp_norm, b->normed);
    swiglu_rows(step++, &l->gate_up, p, b->normed, b->prepared, b->product);
    linear_rows(step++, threads, &l->down, bf16, rows, b->product, b->prepared, x, bf16, 1);
}

/* ---- what Python calls ---- */

/* Waking threads costs microseconds: a small step (in multiplications) is done by one. */
static int crew(long threads, long work) { return work < 1 << 17 ? 1 : threads; }

long tile(void) { return TILE; }
long group(void) { return GROUP; }

/* x [n][width]: the residual stream before layer `first`, afterwards the one behind the last of `count` layers.
 * Returns 0, or 1 if memory is short. */
long run_layers(const Pass *p, const Layer *const *layers, long first, long count, char *x) {
    const long rows = p->rows, bf16 = p->bf16, inner = p->heads * p->head_dim, qkv = inner + 2 * p->kv_heads * p->head_dim;
    const long behind = p->known + rows, stride = tiles(p->start + behind) * TILE, weights = p->width * (qkv + inner + 3 * p->mlp_width);
    const long wide = p->beside_width + p->width; /* of what q, k and v are made of, at most */
    const long shared = 4 * rows * (qkv + wide + 2 * inner + p->mlp_width), steps = STEPS * count * sizeof(Step);
    long prepared = 0;
    for (const Layer *const *l = layers + first; l < layers + first + count; l++)
        for (const Linear *part = &(*l)->qkv; part <= &(*l)->down; part++)
            prepared = most(prepared, prepared_size(part, rows, bf16));
    const long own = prepared + ROWS * (4 * stride + sizeof(long) * behind); /* bytes, like `shared` and `steps` */
    char *memory = aligned_alloc(64, (steps + shared + p->threads * own + 63) / 64 * 64);
    if (!memory) return 1;
    memset(memory, 0, steps);
#pragma omp parallel num_threads(crew(p->threads, rows * weights))
    {
        Buffers b = {.qkv = (float *)(memory + steps), .stride = stride};
        b.normed = (char *)(b.qkv + rows * qkv);
        b.q = b.normed + 4 * rows * wide;
        b.attended = b.q + 4 * rows * inner;
        b.product = b.attended + 4 * rows * inner;
        b.prepared = memory + steps + shared + omp_get_thread_num() * own;
        b.scores = (float *)(b.prepared + prepared);
        b.path = (long *)(b.scores + ROWS * stride);
        for (long i = 0; i < count; i++) layer((Step *)memory + STEPS * i, p, layers[first + i], &b, first + i, x);
    }
    free(memory);
    return 0;
}

/* y [n][outputs] = x [n][inputs] W^T + b; y may be fp32 where x is bf16. Returns 0, or 1 if memory is short. */
long linear(const Linear *l, long threads, long rows, long bf16, const char *x, char *y, long y_bf16) {
    const long own = prepared_size(l, rows, bf16);
    char *memory = own ? aligned_alloc(64, threads * own) : NULL;
    if (own && !memory) return 1;
    Step step = {0};
#pragma omp parallel num_threads(crew(threads, rows * l->inputs * l->outputs))
    linear_rows(&step, threads, l, bf16, rows, x, memory + omp_get_thread_num() * own, y, y_bf16, 0);
    free(memory);
    return 0;
}

void rms_norm(const float *weight, long rows, long width, double eps, long bf16, const char *x, char *y) {
    const long row = width * size_of(bf16);
    for (long n = 0; n < rows; n++) rms_norm_row(x + n * row, weight, width, eps, bf16, y + n * row);
}

/* found [n][2] = the place of the largest of each row x + n * stride [columns], of equals the first, and that number; a
 * NaN is larger than any. */
void largest(const float *x, long rows, long stride, long columns, double *found) {
    for (const float *row = x; row < x + rows * stride; row += stride, found += 2) {
        enum { SIDE = 4 }; /* vectors side by side, that none waits for the one before */
        const long vectors = columns / (SIDE * LANES) * (SIDE * LANES);
        vec best[SIDE];
        bits nan[SIDE];
        for (int v = 0; v < SIDE; v++) best[v] = all(-INFINITY), nan[v] = (bits){0};
        for (long i = 0; i < vectors; i += SIDE * LANES)
            for (int v = 0; v < SIDE; v++) {
                vec x_v = at(row + i + v * LANES);
                best[v] = pick((bits)(x_v > best[v]), x_v, best[v]);
                nan[v] |= (bits)(x_v != x_v);
            }
        float top = -INFINITY;
        uint32_t odd = 0;
        for (int i = 0; i < SIDE * LANES; i++) {
            top = best[i / LANES][i % LANES] > top ? best[i / LANES][i % LANES] : top;
            odd |= nan[i / LANES][i % LANES];
        }
        for (long i = vectors; i < columns; i++) {
            top = row[i] > top ? row[i] : top;
            odd |= row[i] != row[i];
        }
        long place = 0; /* blocks that do not have it are passed by without a branch for each number */
        for (int has = 0; place < columns && !has; place += has ? 0 : 64)
            for (long i = place; i < least(place + 64, columns); i++) has |= odd ? row[i] != row[i] : row[i] == top;
        while (odd ? row[place] == row[place] : row[place] != top) place++;
        found[0] = place;
        found[1] = row[place];
    }
}

/* The largest `count` of a row, the first of equals first: their places, and what they are. Blocks in which none is
 * larger than the last of those so far are passed by. */
static void largest_of_row(const float *row, long columns, long count, long *places, float *values) {
    long found = 0;
    for (long begin = 0; begin < columns; begin += TILE) {
        const long end = least(begin + TILE, columns);
        if (found == count && end - begin == TILE) {
            vec a = at(row + begin), b = at(row + begin + LANES);
            bits larger = (bits)(a > values[count - 1]) | (bits)(b > values[count - 1]);
            uint32_t any = 0;
            for (int i = 0; i < LANES; i++) any |= larger[i];
            if (!any) continue;
        }
        for (long i = begin; i < end; i++) {
            if (found == count && !(row[i] > values[count - 1])) continue;
            found += found < count;
            long c = found - 1;
            for (; c && row[i] > values[c - 1]; c--) places[c] = places[c - 1], values[c] = values[c - 1];
            places[c] = i, values[c] = row[i];
        }
    }
}

/* places, log_p [n][count]: the likeliest of each row of logits x + n * stride [columns], the first of equals first, and
 * their log probabilities. count <= columns. */
void likeliest(const float *x, long rows, long stride, long columns, long count, long *places, float *log_p) {
    const long vectors = columns / LANES * LANES;
    for (const float *row = x; row < x + rows * stride; row += stride, places += count, log_p += count) {
        largest_of_row(row, columns, count, places, log_p);
        const float best = log_p[0];
        vec sums = {0};
        for (long i = 0; i < vectors; i += LANES) sums += exponential(at(row + i) - best);
        float sum = total(sums);
        for (long i = vectors; i < columns; i++) sum += expf(row[i] - best);
        for (long c = 0; c < count; c++) log_p[c] = log_p[c] - best - logf(sum);
    }
}

/* Be busy until the monotonic clock shows so many seconds: what stands for a pass of known length. */
void busy_until(double seconds) {
    struct timespec now;
    do {
        for (int i = 0; i < 8; i++) relax();
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec + 1e-9 * now.tv_nsec < seconds);
}
