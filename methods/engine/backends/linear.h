/* Linear layers: some outputs of some rows, by the kernel for the layer's weights. Part of native.c. */
#include <stdlib.h>

#include "int4.h"

typedef struct {
    const char *weight; /* packed */
    const float *bias;  /* whole tiles, or NULL */
    const float *scale; /* of each output, whole tiles, where weights are int8, else NULL */
    const int *sums;    /* 128 x the sum of each output's weights, whole tiles, where these are int8 in groups */
    long inputs, outputs;
    long int4; /* whether weights are in 4 bits */
} Linear;

typedef struct { /* rows of a linear layer's inputs */
    const char *x;
    long bf16, rows;
    float *wide;           /* bf16 that no product takes, for int8 or where these are WIDE: in fp32, else NULL */
    unsigned char *bytes;  /* for 4 bits: of each row; for int8 in groups: its upper and its lower ones; else NULL */
    float *scales, *sums;  /* of each row's groups, for 4 bits: see round_groups(); of each row, for int8: see halve() */
} Inputs;

/* Whether sums are of integers. */
static inline int in_bytes(const Linear *l) { return l->int4 || (l->scale && GROUP != 1); }

/* Bytes that prepare() writes for rows of inputs. */
static long prepared_size(const Linear *l, long rows, long bf16) {
    long row = bf16 && (WIDE || l->scale) ? 4 * l->inputs : 0;
    if (in_bytes(l)) row = l->int4 ? l->inputs + l->inputs / NIBBLES * 8 : 2 * l->inputs + 4;
    return (rows * row + 63) / 64 * 64;
}

/* Make the inputs of a layer what its weights take, once. Each thread makes its own, so none waits. It does so when it
 * holds its first piece of the work: the others then wait for that piece, so nobody writes to x meanwhile. */
static void prepare(Inputs *in, const Linear *l, char *memory) {
    const long rows = in->rows;
    if (in->bytes || in->wide || !prepared_size(l, rows, in->bf16)) return;
    if (!in_bytes(l)) {
        const long count = rows * l->inputs, whole = count / LANES * LANES;
        in->wide = (float *)memory;
        for (long i = 0; i < whole; i += LANES) *(vec_at *)(in->wide + i) = load(in->x, i, in->bf16);
        for (long i = whole; i < count; i++) in->wide[i] = number(in->x, i, in->bf16);
        return;
    }
    const long inputs = l->inputs, groups = l->int4 ? inputs / NIBBLES : 1, row = inputs * size_of(in->bf16);
    in->scales = (float *)memory;
    in->sums = in->scales + rows * groups;
    in->bytes = (unsigned char *)(l->int4 ? in->sums + rows * groups : in->sums);
    for (long n = 0; n < rows; n++) {
        const char *x = in->x + n * row;
        if (l->int4)
            round_groups(x, in->bf16, inputs, in->bytes + n * inputs, in->scales + n * groups, in->sums + n * groups);
        else
            in->scales[n] = halve(x, in->bf16, inputs, in->bytes + 2 * n * inputs, in->bytes + (2 * n + 1) * inputs);
    }
}

/* sum = tile `t` of the weights x rows n, n + 1, ... by sums of integers */
static void quads_tile(const Linear *l, const Inputs *in, long t, long n, int rows, vec (*sum)[2]) {
    const long inputs = l->inputs, steps = inputs / GROUP;
    for (int from = 0; from < rows; from += ROWS / 2) { /* a row has two halves */
        const int block = least(rows - from, ROWS / 2);
        vec part[ROWS][2] = {0};
        dot(QUADS, 2 * block, steps, l->weight + t * inputs * TILE, in->bytes + 2 * (n + from) * inputs, steps, part);
        for (int r = 0; r < block; r++)
            for (int v = 0; v < 2; v++) {
                const whole upper = (whole)part[2 * r][v] - *(const whole_at *)(l->sums + t * TILE + v * LANES);
                const vec lower = __builtin_convertvector((whole)part[2 * r + 1][v], vec);
                const vec both = multiply_add(__builtin_convertvector(upper, vec), all(256), lower);
                sum[from + r][v] = both * in->scales[n + from + r];
            }
    }
}

/* sum += tile `t` of the weights x rows n, n + 1, ... by sums of fp32 */
static void floats_tile(const Linear *l, const Inputs *in, long t, long n, int rows, vec (*sum)[2]) {
    const long narrow = in->bf16 && !in->wide, row = l->inputs * size_of(narrow);
    const int kind = l->scale ? BYTES : in->bf16 ? PAIRS : FLOATS;
    const long steps = l->inputs / step_inputs(kind), size = step_size(kind);
    const long block = block_of(in->rows, ROWS), blocks = (in->rows + block - 1) / block;
    const char *w = l->weight + t * steps * size, *x = in->wide ? (const char *)in->wide : in->x;
    dot_fetching(kind, rows, steps, w, share_of_next(w, size, steps, n / block, blocks), x + n * row, row / 4, sum);
}

/* sum = bias + tile `t` of the weights x rows n, n + 1, ... of the inputs, at most ROWS */
static void linear_tile(const Linear *l, const Inputs *in, long t, long n, int rows, vec (*sum)[2]) {
    const long first = t * TILE, groups = l->inputs / NIBBLES, low = l->scale || l->int4;
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++) sum[r][v] = l->bias && !low ? at(l->bias + first + v * LANES) : (vec){0};
    if (l->int4)
        nibbles_dot(rows, groups, l->weight + t * groups * NIBBLE_GROUP, in->bytes + n * l->inputs,
                    in->scales + n * groups, in->sums + n * groups, sum);
    else if (in->bytes)
        quads_tile(l, in, t, n, rows, sum);
    else
        floats_tile(l, in, t, n, rows, sum);
    for (int r = 0; low && r < rows; r++)
        for (int v = 0; v < 2; v++) {
            if (l->scale) sum[r][v] *= at(l->scale + first + v * LANES);
            if (l->bias) sum[r][v] += at(l->bias + first + v * LANES);
        }
}
