/* Vectors of numbers, and the kernel that sums products: all that depends on the processor. Part of native.c, as are
 * int4.h, the kernel of weights in 4 bits, and linear.h, what a linear layer makes of both.
 *
 * Weights are packed in tiles of TILE outputs: [tile][step][TILE], a step being 4 bytes, one input in fp32 or two in
 * bf16. A lane of a vector register belongs to one output and a register to one row, so nothing is summed across lanes,
 * and a row is summed in the same order among any number of rows. A tile is read from memory once for all rows.
 *
 * Where the processor has no products of bf16 pairs (WIDE), inputs in bf16 are widened to fp32 once, since each is used
 * by every tile. The sums are the same.
 *
 * int8 weights are packed in [tile][input][TILE] and widened on the way to the inputs' type; where the processor
 * multiplies bytes, in steps of GROUP inputs, and the inputs are rounded to 16 bits, see halve(). */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { LANES = 16, ROWS = 8 }; /* ROWS x 2 sums fit the registers, and suffice to hide a multiply-add's latency */
#elif defined(__AVX2__) && defined(__FMA__)
enum { LANES = 8, ROWS = 6 };
#else
enum { LANES = 4, ROWS = 6 };
#endif
#if defined(__AVX512VNNI__)
enum { GROUP = 4 };
#else
enum { GROUP = 1 };
#endif
#if defined(__AVX512BF16__)
enum { WIDE = 0 };
#else
enum { WIDE = 1 };
#endif
enum { TILE = 2 * LANES, AHEAD = 16384, NEAR = 2048 }; /* bytes by which weights are fetched ahead, to L2 and to L1 */

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits __attribute__((vector_size(4 * LANES)));
typedef int32_t whole __attribute__((vector_size(4 * LANES)));
typedef uint16_t half __attribute__((vector_size(2 * LANES)));
typedef vec vec_at __attribute__((aligned(1), may_alias)); /* the same in memory, anywhere */
typedef half half_at __attribute__((aligned(1), may_alias));
typedef whole whole_at __attribute__((aligned(1), may_alias));
typedef uint32_t unit __attribute__((may_alias)); /* 4 bytes: one fp32 or two bf16 numbers */

static inline long least(long a, long b) { return a < b ? a : b; }
static inline long most(long a, long b) { return a > b ? a : b; }
static inline long tiles(long outputs) { return (outputs + TILE - 1) / TILE; }
/* Rows of a block, of rows cut into the fewest blocks of at most `top`: about equal ones, since few rows wait for the
 * latency of their multiply-adds. */
static inline long block_of(long rows, long top) {
    const long blocks = (rows + top - 1) / top;
    return (rows + blocks - 1) / blocks;
}
static inline long size_of(long bf16) { return bf16 ? 2 : 4; }
static inline vec all(float x) { return x - (vec){0}; }
static inline vec at(const float *x) { return *(const vec_at *)x; }
static inline vec pick(bits mask, vec yes, vec no) { return (vec)((mask & (bits)yes) | (~mask & (bits)no)); }

/* Fetch a line of weights ahead of its use, in two hops, from memory at `far` and from L2: a core has few slots for
 * lines on their way to L1, and what waits for memory in them would hold up what waits for L2. */
static inline void fetch(const char *w, const char *far) {
    __builtin_prefetch(far, 0, 2);
    __builtin_prefetch(w + NEAR, 0, 3);
}

/* Tell the processor that this thread only waits. */
static inline void relax(void) {
#ifdef __SSE2__
    _mm_pause();
#endif
}

static inline vec multiply_add(vec a, vec b, vec sum) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__) && defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return a * b + sum;
#endif
}

/* integers: sum + the products of four bytes a without sign and four bytes b with one, added up */
static inline vec multiply_add_quads(vec a, vec b, vec sum) {
#if defined(__AVX512VNNI__)
    return (vec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#else
    whole products = (whole)sum;
    for (int byte = 0; byte < 4; byte++)
        products += (whole)((bits)a >> 8 * byte & 255) * ((whole)((bits)b << (24 - 8 * byte)) >> 24);
    return (vec)products;
#endif
}

/* The same of bytes a of at most 15, for at most 8 of them in a row: `sum` is for added_nibbles(). Where the processor
 * multiplies pairs of bytes into 16 bits, these hold 8 sums of two products, so they are widened only then. */
static inline vec multiply_add_nibbles(vec a, vec b, vec sum) {
#if defined(__AVX512BW__) && !defined(__AVX512VNNI__)
    return (vec)_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16((__m512i)a, (__m512i)b));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return (vec)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)a, (__m256i)b));
#else
    return multiply_add_quads(a, b, sum);
#endif
}

static inline whole added_nibbles(vec sum) {
#if defined(__AVX512BW__) && !defined(__AVX512VNNI__)
    return (whole)_mm512_madd_epi16((__m512i)sum, _mm512_set1_epi16(1));
#elif defined(__AVX2__) && !defined(__AVX512F__)
    return (whole)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1));
#else
    return (whole)sum;
#endif
}

/* LANES fp16 numbers as fp32, exactly */
static inline vec widen_halves(const char *x) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x));
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
    return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x));
#else
    const bits number = __builtin_convertvector(*(const half_at *)x, bits), size = number & 0x7fff;
    const vec value = pick((bits)(size < 0x7c00), (vec)(size << 13) * 0x1p112f, all(NAN)); /* no infinity is stored */
    return (vec)((bits)value | (number & 0x8000) << 16);
#endif
}

static inline vec load(const char *x, long i, long bf16) {
    if (!bf16) return at((const float *)x + i);
    return (vec)(__builtin_convertvector(*(const half_at *)((const uint16_t *)x + i), bits) << 16);
}

static inline float number(const char *x, long i, long bf16) {
    const uint32_t wide = bf16 ? (uint32_t)((const uint16_t *)x)[i] << 16 : ((const unit *)x)[i];
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* LANES int8 numbers as fp32, exactly */
static inline vec widen(const char *x) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)x)));
#elif defined(__AVX2__) && defined(__FMA__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)x)));
#else
    const bits places = {24, 16, 8, 0}; /* each lane gets its byte at the top, and its sign from there */
    return __builtin_convertvector((whole)(((bits){0} + *(const unit *)x) << places) >> 24, vec);
#endif
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

/* weights and inputs: both fp32; both bf16, in pairs (inputs that are WIDE are fp32); bf16 and fp32; int8 and fp32; int8
 * and bytes without sign, in fours: their sums are integers */
enum { FLOATS, PAIRS, MIXED, BYTES, QUADS };

/* Inputs of a step, and the bytes of a step of a tile. */
static inline long step_inputs(int kind) { return kind == QUADS ? 4 : kind == PAIRS ? 2 : 1; }
static inline long step_size(int kind) {
    return TILE * step_inputs(kind) * (kind == FLOATS ? 4 : kind == PAIRS || kind == MIXED ? 2 : 1);
}

/* LANES outputs of the step at w, from output i on; of pairs that meet WIDE inputs, the first or second number */
static inline __attribute__((always_inline)) vec weights(const int kind, const char *w, long i, const int second) {
    if (kind == BYTES) return widen(w + i);
    const vec both = load(w, i, kind == MIXED);
    if (kind != PAIRS || !WIDE) return both;
    return second ? (vec)((bits)both & 0xffff0000u) : (vec)((bits)both << 16);
}

static inline __attribute__((always_inline)) vec accumulate(const int kind, vec w, vec x, vec sum) {
    if (kind == QUADS) return multiply_add_quads(x, w, sum);
#if defined(__AVX512BF16__)
    if (kind == PAIRS) return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
#endif
    return multiply_add(w, x, sum);
}

/* What to fetch from memory: `step` bytes further at each step of a dot(). */
typedef struct {
    const char *from;
    long step;
} Fetch;

/* dot() for a constant number of rows, so that their sums stay in registers */
static inline __attribute__((always_inline)) void dot_block(const int kind, const int rows, long steps, const char *w,
                                                            Fetch far, const unit *x, long stride, vec (*sum)[2]) {
    const long size = step_size(kind);
    const int values = kind == PAIRS && WIDE ? 2 : 1; /* units of a step */
    vec s[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) s[r][0] = sum[r][0], s[r][1] = sum[r][1];
    for (long i = 0; i < steps; i++) {
        for (long line = 0; line < size; line += 64) fetch(w + i * size + line, far.from + i * far.step + line);
#pragma GCC unroll 2
        for (int v = 0; v < values; v++) {
            vec w0 = weights(kind, w + i * size, 0, v), w1 = weights(kind, w + i * size, LANES, v);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                vec value = (vec)((bits){0} + x[r * stride + values * i + v]);
                s[r][0] = accumulate(kind, w0, value, s[r][0]);
                s[r][1] = accumulate(kind, w1, value, s[r][1]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) sum[r][0] = s[r][0], sum[r][1] = s[r][1];
}

#define BLOCK(kind, rows)                                                                   \
    case 8 * kind + rows - 1:                                                                    \
        dot_block(kind, rows < ROWS ? rows : ROWS, steps, w, far, (const unit *)x, stride, sum); \
        break;
#define BLOCKS(kind)                                                \
    BLOCK(kind, 1) BLOCK(kind, 2) BLOCK(kind, 3) BLOCK(kind, 4)     \
    BLOCK(kind, 5) BLOCK(kind, 6) BLOCK(kind, 7) BLOCK(kind, 8)

/* sum[row] += `steps` steps of the tile w times x[row], for 1 to ROWS rows of x that lie `stride` x 4 bytes apart */
static void dot_fetching(int kind, int rows, long steps, const char *w, Fetch far, const void *x, long stride,
                         vec (*sum)[2]) {
    switch (8 * kind + rows - 1) {
        BLOCKS(FLOATS) BLOCKS(PAIRS) BLOCKS(MIXED) BLOCKS(BYTES) BLOCKS(QUADS)
    }
}

static void dot(int kind, int rows, long steps, const char *w, const void *x, long stride, vec (*sum)[2]) {
    dot_fetching(kind, rows, steps, w, (Fetch){w + AHEAD, step_size(kind)}, x, stride, sum);
}

/* What one of the blocks of rows that meet a tile fetches: the tile is in the cache from the first block on, so each
 * fetches its share of the next tile, and memory is never idle. A single block goes ahead in its own tile. */
static inline Fetch share_of_next(const char *w, long size, long steps, long block, long blocks) {
    if (blocks == 1) return (Fetch){w + AHEAD, size};
    return (Fetch){w + size * steps + size * steps / blocks * block, size / blocks};
}

/* The row x as 16 bit numbers, cut in two: x[i] = scale * (256 * (upper[i] - 128) + lower[i]), rounded. Returns scale:
 * NaN where not all of x is finite, so that nothing made of it is. */
static float halve(const char *x, long bf16, long count, unsigned char *upper, unsigned char *lower) {
    float top = 0;
    int finite = 1;
    for (long i = 0; i < count; i++) {
        const float size = fabsf(number(x, i, bf16));
        top = size > top ? size : top;
        finite &= isfinite(size) != 0;
    }
    if (!finite) {
        memset(upper, 0, count), memset(lower, 0, count);
        return NAN;
    }
    for (long i = 0; i < count; i++) {
        const int whole = top > 0 ? (int)rintf(number(x, i, bf16) * (32512 / top)) + 32768 : 32768;
        upper[i] = whole >> 8, lower[i] = whole & 255;
    }
    return top / 32512;
}
