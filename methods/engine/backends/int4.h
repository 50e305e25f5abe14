/* Products with weights in 4 bits, by sums of integers on every processor. Part of native.c.
 *
 * A weight is step * q + base for q = 0 .. 15, step and base being those of its output and its group of NIBBLES
 * inputs, in fp16. Weights are packed in [tile][group], each the steps [TILE], the bases [TILE], and the nibbles
 * [NIBBLES / 4][LANES][4]: a byte has the q of output i below that of output LANES + i, for one input. So a register
 * of bytes is two registers of a tile's outputs for four inputs.
 *
 * Inputs are rounded to 8 bits, with a scale for each group of each row: an error like that of bf16, which they are in
 * most often. */
#include "native.h"

enum { NIBBLES = 32, NIBBLE_GROUP = TILE * (2 * 2 + NIBBLES / 2) }; /* the latter: bytes of a group of a tile */

/* LANES numbers, at most 127, as bytes */
static inline void store_bytes(unsigned char *x, whole v) {
    typedef signed char bytes __attribute__((vector_size(LANES)));
    const bytes narrow = __builtin_convertvector(v, bytes);
    memcpy(x, &narrow, sizeof narrow);
}

/* The row x as bytes: x[i] = scales[group of i] * bytes[i], rounded; and the sum of each group's numbers then. A scale is
 * not finite where its group of x is not, so that nothing made of it is. */
static void round_groups(const char *x, long bf16, long count, unsigned char *bytes, float *scales, float *sums) {
    for (long g = 0; g < count / NIBBLES; g++) {
        whole tops = {0}, sum = {0};
        for (long i = g * NIBBLES; i < (g + 1) * NIBBLES; i += LANES) {
            const whole size = (whole)((bits)load(x, i, bf16) & 0x7fffffff); /* in the order of the numbers */
            tops = (whole)pick((bits)(size > tops), (vec)size, (vec)tops);
        }
        int top = tops[0];
        for (int i = 1; i < LANES; i++) top = tops[i] > top ? tops[i] : top;
        const float largest = ((vec)(tops * 0 + top))[0], inverse = largest > 1e-30f ? 127 / largest : 0;
        for (long i = g * NIBBLES; i < (g + 1) * NIBBLES; i += LANES) {
            const vec rounded = load(x, i, bf16) * inverse + 12582912; /* 1.5 * 2^23 leaves a whole number below */
            const whole number = (whole)((bits)rounded - 0x4b400000);
            store_bytes(bytes + i, number);
            sum += number;
        }
        for (int i = 1; i < LANES; i++) sum[0] += sum[i];
        scales[g] = largest / 127;
        sums[g] = scales[g] * sum[0];
    }
}

/* nibbles_dot() for a constant number of rows, so that the sums of a group stay in registers */
static inline __attribute__((always_inline)) void nibbles_block(const int rows, long groups, const char *w,
                                                                const unsigned char *x, const float *scales,
                                                                const float *sums, vec (*sum)[2]) {
    const long inputs = groups * NIBBLES;
    for (long g = 0; g < groups; g++, w += NIBBLE_GROUP) {
        vec part[ROWS][2] = {0};
        for (long i = 0; i < NIBBLE_GROUP; i += 64) fetch(w + i, w + AHEAD + i);
#pragma GCC unroll 8
        for (long i = 0; i < NIBBLES / 4; i++) {
            const bits both = (bits)at((const float *)(w + 4 * TILE) + i * LANES);
            const vec w0 = (vec)(both & 0x0f0f0f0f), w1 = (vec)(both >> 4 & 0x0f0f0f0f);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                const vec value = (vec)((bits){0} + ((const unit *)(x + r * inputs + g * NIBBLES))[i]);
                part[r][0] = multiply_add_nibbles(w0, value, part[r][0]);
                part[r][1] = multiply_add_nibbles(w1, value, part[r][1]);
            }
        }
        for (int v = 0; v < 2; v++) {
            const vec step = widen_halves(w + v * 2 * LANES), base = widen_halves(w + 2 * TILE + v * 2 * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) { /* below 15 * 32 * 128: exact in fp32 */
                const vec products = __builtin_convertvector(added_nibbles(part[r][v]), vec);
                sum[r][v] = multiply_add(all(sums[r * groups + g]), base, sum[r][v]);
                sum[r][v] = multiply_add(products, step * all(scales[r * groups + g]), sum[r][v]);
            }
        }
    }
}

#define NIBBLES_BLOCK(rows)                                                                       \
    case rows:                                                                                    \
        nibbles_block(rows < ROWS ? rows : ROWS, groups, w, x, scales, sums, sum);                \
        break;

/* sum[row] += the groups of the tile w times a row of inputs, for 1 to ROWS rows. x [row][input], scales and sums
 * [row][group]: see round_groups() */
static void nibbles_dot(int rows, long groups, const char *w, const unsigned char *x, const float *scales,
                        const float *sums, vec (*sum)[2]) {
    switch (rows) {
        NIBBLES_BLOCK(1) NIBBLES_BLOCK(2) NIBBLES_BLOCK(3) NIBBLES_BLOCK(4)
        NIBBLES_BLOCK(5) NIBBLES_BLOCK(6) NIBBLES_BLOCK(7) NIBBLES_BLOCK(8)
    }
}
