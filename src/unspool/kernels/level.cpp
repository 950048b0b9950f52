// Products of few rows with a packed weight, for one instruction set: compiled once per level (see build.py).
//
// Each output of each row is summed in one order, whatever the number of rows: pieces in turn, and the inputs of a piece
// in turn. Integers are summed exactly. So all numbers of rows give a row the same bits, and all levels do, except for
// bfloat16 weights and inputs, which a level can multiply in pairs or in tiles.
#include "amx.h"

namespace unspool {
namespace {

// Rows of a tile: their accumulators fill the registers.
#if defined(__AVX512VNNI__)
constexpr int TILE[] = {8, 8, 6, 6};
#elif defined(__AVX512F__)
constexpr int TILE[] = {8, 8, 8, 6};
#elif defined(__AVX2__)
constexpr int TILE[] = {3, 3, 2, 2};
#else
constexpr int TILE[] = {3, 3, 1, 1};
#endif

// ---- float32 and bfloat16 weights: x is float32 [inputs][R] -------------------------------------------------------

// Adds the products of one input. The order of the loops keeps all sums, and as few other values as possible, in
// registers: two vectors of weights, or one vector of weights and the inputs of a few rows.
template <int R, class Load> INLINE void add(F (&sum)[R][VECS], const float* x, Load load) {
    if constexpr (VECS == 2) {
        F w[] = {load(0), load(1)};
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < VECS; v++) sum[r][v] += w[v] * same(x[r]);
    } else {
        UNROLL for (int v = 0; v < VECS; v++) {
            F w = load(v);
            UNROLL for (int r = 0; r < R; r++) sum[r][v] += w * same(x[r]);
        }
    }
}

template <int R> INLINE void add_to(float* total, const F (&sum)[R][VECS]) {
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < VECS; v++) reinterpret_cast<F*>(total + r * BLOCK)[v] += sum[r][v];
}

template <int R> PIECE_FUNCTION float32_piece(const uint8_t* weight, const float* x, float* total, int inputs, Ahead ahead) {
    F sum[R][VECS] = {};
    for (int k = 0; k < inputs; k++, weight += 4 * BLOCK, x += R) {
        ahead.move();
        add<R>(sum, x, [&](int v) __attribute__((always_inline)) { return reinterpret_cast<const F*>(weight)[v]; });
    }
    add_to<R>(total, sum);
}

template <int R> PIECE_FUNCTION bfloat16_piece(const uint8_t* weight, const float* x, float* total, int inputs, Ahead ahead) {
    F sum[R][VECS] = {};
    for (int k = 0; k < inputs; k += 2, weight += 4 * BLOCK, x += 2 * R) {
        const U* pairs = reinterpret_cast<const U*>(weight);
        ahead.move();
        add<R>(sum, x, [&](int v) __attribute__((always_inline)) { return low_half(pairs[v]); });
        add<R>(sum, x + R, [&](int v) __attribute__((always_inline)) { return high_half(pairs[v]); });
    }
    add_to<R>(total, sum);
}

// Both numbers of a pair at once, for x in bfloat16 [inputs / 2][R][2]: twice as many products per instruction.
#if defined(__AVX512BF16__)
constexpr bool HAS_PAIRS = true;
INLINE F pair_dot(F sum, U weight, int32_t x) {
    return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)_mm512_set1_epi32(x));
}
#else
constexpr bool HAS_PAIRS = false;
INLINE F pair_dot(F sum, U, int32_t) { return sum; }   // not called
#endif

template <int R> PIECE_FUNCTION pair_piece(const uint8_t* weight, const int32_t* x, float* total, int inputs, Ahead ahead) {
    F sum[R][VECS] = {};
    for (int k = 0; k < inputs; k += 2, weight += 4 * BLOCK, x += R) {
        const U* w = reinterpret_cast<const U*>(weight);
        ahead.move();
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < VECS; v++) sum[r][v] = pair_dot(sum[r][v], w[v], x[r]);
    }
    add_to<R>(total, sum);
}

// ---- products of bytes --------------------------------------------------------------------------------------------
//
// int8: x has 16 bits, x = 256 * high + low with two signed bytes. A level with byte products multiplies both; the
// others multiply 16-bit numbers. The sum of a piece fits 32 bits: 512 * 127 * (127 * 256 + 128) < 2**31.
// int4: x has 8 bits and a scale per group; nibbles are unsigned.

#if defined(__AVX512VNNI__) || defined(__ARM_FEATURE_DOTPROD)
INLINE I even_bytes(I a) { return a; }   // not called, like the next two
INLINE I odd_bytes(I a) { return a; }
INLINE I pairs(I a, I) { return a; }
#endif
#if defined(__AVX512VNNI__)
constexpr int DIGITS = 2;
constexpr uint8_t FLIP = 128;
INLINE I dot(I sum, I bytes, int32_t x) { return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)bytes, _mm512_set1_epi32(x)); }
INLINE I nibble_dot(I sum, I bytes, int32_t x) { return dot(sum, bytes, x); }
INLINE I nibble_sum(I sum) { return sum; }
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr int DIGITS = 2;
constexpr uint8_t FLIP = 0;
INLINE I dot(I sum, I bytes, int32_t x) {
    return (I)vdotq_s32((int32x4_t)sum, vreinterpretq_s8_s32((int32x4_t)bytes), vreinterpretq_s8_s32(vdupq_n_s32(x)));
}
INLINE I nibble_dot(I sum, I bytes, int32_t x) { return dot(sum, bytes, x); }
INLINE I nibble_sum(I sum) { return sum; }
#else
constexpr int DIGITS = 1;
constexpr uint8_t FLIP = 0;
INLINE I dot(I sum, I, int32_t) { return sum; }   // not called
#if defined(__AVX512F__)
INLINE I pairs(I a, I b) { return (I)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
INLINE I byte_pairs(I a, I b) { return (I)_mm512_maddubs_epi16((__m512i)a, (__m512i)b); }
INLINE I add16(I a, I b) { return (I)_mm512_add_epi16((__m512i)a, (__m512i)b); }
INLINE I even_bytes(I a) { return (I)_mm512_srai_epi16(_mm512_slli_epi16((__m512i)a, 8), 8); }
INLINE I odd_bytes(I a) { return (I)_mm512_srai_epi16((__m512i)a, 8); }
#else
INLINE I pairs(I a, I b) { return (I)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
INLINE I byte_pairs(I a, I b) { return (I)_mm256_maddubs_epi16((__m256i)a, (__m256i)b); }
INLINE I add16(I a, I b) { return (I)_mm256_add_epi16((__m256i)a, (__m256i)b); }
INLINE I even_bytes(I a) { return (I)_mm256_srai_epi16(_mm256_slli_epi16((__m256i)a, 8), 8); }
INLINE I odd_bytes(I a) { return (I)_mm256_srai_epi16((__m256i)a, 8); }
#endif
// Sums of 8 pairs of products fit 16 bits: 8 * 2 * 15 * 127 < 2**15.
INLINE I nibble_dot(I sum, I bytes, int32_t x) { return add16(sum, byte_pairs(bytes, I{} + x)); }
INLINE I nibble_sum(I sum) { return pairs(sum, I{} + 0x10001); }
#endif

template <int R>
PIECE_FUNCTION int8_piece(const uint8_t* weight, const int32_t* x, const int32_t* offset, float* total, int inputs, Ahead ahead) {
    I sum[R][DIGITS][VECS] = {};
    for (int k = 0; k < inputs; k += 4, weight += 4 * BLOCK, x += 2 * R) {
        ahead.move();
        const I* w = reinterpret_cast<const I*>(weight);
        if constexpr (DIGITS == 2) {
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int d = 0; d < DIGITS; d++)
                    UNROLL for (int v = 0; v < VECS; v++) sum[r][d][v] = dot(sum[r][d][v], w[v], x[2 * r + d]);
        } else {
            UNROLL for (int v = 0; v < VECS; v++) {
                I even = even_bytes(w[v]), odd = odd_bytes(w[v]);
                UNROLL for (int r = 0; r < R; r++) sum[r][0][v] += pairs(even, I{} + x[2 * r]);
                UNROLL for (int r = 0; r < R; r++) sum[r][0][v] += pairs(odd, I{} + x[2 * r + 1]);
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < VECS; v++) {
            // Unsigned arithmetic wraps: only the last result must fit 32 bits.
            U whole = (U)sum[r][0][v];
            if (DIGITS == 2) whole = (whole << 8) + (U)sum[r][DIGITS - 1][v];
            if (FLIP) whole -= (uint32_t)offset[r];
            reinterpret_cast<F*>(total + r * BLOCK)[v] += converted((I)whole);
        }
}

// x: bytes [inputs / 4][R][4]; facts: [groups][R][2], the scale of x and the sum of x.
template <int R>
PIECE_FUNCTION int4_piece(const uint8_t* weight, const int32_t* x, const float* facts, float* total, int inputs, Ahead ahead) {
    F found[R][VECS];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < VECS; v++) found[r][v] = reinterpret_cast<F*>(total + r * BLOCK)[v];
    for (int k = 0; k < inputs; k += GROUP, weight += GROUP_BYTES, x += 8 * R, facts += 2 * R) {
        UNROLL for (int line = 0; line < GROUP_BYTES; line += 128) ahead.move();
        const I* numbers = reinterpret_cast<const I*>(weight + 4 * BLOCK);
        UNROLL for (int v = 0; v < VECS; v += 2) {   // two vectors at a time, so that the sums stay in registers
            I sum[R][2] = {};
            UNROLL for (int j = 0; j < 4; j++) {
                const I* both = numbers + j * VECS + v;
                I low[] = {both[0] & 0x0f0f0f0f, both[1] & 0x0f0f0f0f};
                UNROLL for (int r = 0; r < R; r++)
                    UNROLL for (int i = 0; i < 2; i++) sum[r][i] = nibble_dot(sum[r][i], low[i], x[j * R + r]);
                I high[] = {(I)((U)both[0] >> 4) & 0x0f0f0f0f, (I)((U)both[1] >> 4) & 0x0f0f0f0f};
                UNROLL for (int r = 0; r < R; r++)
                    UNROLL for (int i = 0; i < 2; i++) sum[r][i] = nibble_dot(sum[r][i], high[i], x[(j + 4) * R + r]);
            }
            UNROLL for (int i = 0; i < 2; i++) {
                U pair = reinterpret_cast<const U*>(weight)[v + i];
                F scale = low_half(pair), zero = high_half(pair) - 8.0f * scale;
                UNROLL for (int r = 0; r < R; r++) {
                    found[r][v + i] += converted(nibble_sum(sum[r][i])) * (scale * facts[2 * r]);
                    found[r][v + i] += zero * facts[2 * r + 1];
                }
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < VECS; v++) reinterpret_cast<F*>(total + r * BLOCK)[v] = found[r][v];
}

// ---- x in the form that the pieces read ---------------------------------------------------------------------------

// Rows are split into tiles of one size; the last one can have fewer rows.
struct Tile {
    int64_t first;
    int rows, size;
};

struct Input {
    int64_t padded, groups;   // inputs; pieces (int8) or groups (int4)
    int64_t words;            // of one row of x, if it is in AMX's tiles; otherwise 0
    bool in_pairs;            // bfloat16 weights and x, multiplied in pairs
    const float* numbers;     // float weights: per tile [padded][rows]
    int32_t* bytes;           // integers: per tile [padded / 4][rows][2], or [padded / 4][rows] for int4; pairs: [padded / 2][rows]
    void* facts;              // offsets (int8), or per tile [groups][rows]: scale and sum (int4)
    float* step;              // int8: the scale of each row
};

// Input after input, so that each line of the tile is written once.
template <int R, class X> static void float_tile_of(const X* x, float* to, int64_t inputs, int64_t padded) {
    for (int64_t k = 0; k < inputs; k++, to += R)
        UNROLL for (int r = 0; r < R; r++) to[r] = value(x + r * inputs + k);
    for (int64_t k = inputs * R; k < padded * R; k++) *to++ = 0;
}

template <class X> static void float_tile(const X* x, float* to, int64_t inputs, int64_t padded, int rows) {
    switch (rows) {
#define CASE(R) case R: return float_tile_of<R>(x, to, inputs, padded);
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
    }
}

static void pair_tile(const uint16_t* x, int32_t* to, int64_t inputs, int rows) {
    for (int r = 0; r < rows; r++, x += inputs) {
        for (int64_t k = 0; k < inputs / 2; k++) memcpy(to + k * rows + r, x + 2 * k, 4);
        if (inputs % 2) to[inputs / 2 * rows + r] = x[inputs - 1];
    }
}

// The largest absolute value of x; NaN if a value is not finite.
template <class X> static float largest(const X* x, int64_t count) {
    float most = 0, finite = 0;
    for (int64_t k = 0; k < count; k++) {
        float size = __builtin_fabsf(value(x + k));
        most = size > most ? size : most;
        finite += size * 0.0f;
    }
    return most + finite;
}

// The nearest integer, ties to even; |x| < 2**22.
INLINE int32_t nearest(float x) {
    float moved = x + 12582912.0f;
    int32_t bits;
    memcpy(&bits, &moved, 4);
    return bits - 0x4b400000;
}

INLINE void int8_quad(const int32_t* n, int32_t* to) {
    uint32_t a = (uint32_t)n[0], b = (uint32_t)n[1], c = (uint32_t)n[2], d = (uint32_t)n[3];
    if (DIGITS == 2) {
        uint32_t high = (a + 128) >> 8 & 255, low = a & 255;
        high |= (b + 128) & 0xff00, low |= (b & 255) << 8;
        high |= ((c + 128) & 0xff00) << 8, low |= (c & 255) << 16;
        high |= ((d + 128) & 0xff00) << 16, low |= d << 24;
        to[0] = (int32_t)high, to[1] = (int32_t)low;
    } else {
        to[0] = (int32_t)((a & 0xffff) | c << 16), to[1] = (int32_t)((b & 0xffff) | d << 16);
    }
}

template <class X>
static void int8_tile(const X* x, int32_t* to, int32_t* offset, int64_t stride, float* step, int64_t inputs, int64_t padded,
                      Tile tile, bool in_tiles) {
    for (int r = 0; r < tile.rows; r++, x += inputs) {
        float most = largest(x, inputs);
        step[r] = most / 32512.0f;
        bool regular = most > 0 && most < __builtin_inff();
        float inverse = regular ? 32512.0f / most : 0.0f;
        for (int64_t piece = 0, start = 0; start < padded; piece++, start += PIECE[INT8]) {
            int64_t count = padded - start < PIECE[INT8] ? padded - start : PIECE[INT8];
            int64_t given = inputs - start < count ? inputs - start : count;
            int32_t n[PIECE[INT8]] = {}, sum = 0;
            if (regular)
                for (int64_t k = 0; k < given; k++) n[k] = nearest(value(x + start + k) * inverse);
            for (int64_t k = 0; k < given; k++) sum += n[k];
            if (in_tiles) {
                for (int64_t k = 0; k < count; k += STEP[INT8])
                    int8_step(n + k, to + ((start + k) / STEP[INT8] * 2 * tile.size + r) * STEP_WORDS, tile.size);
            } else {
                int32_t* quad = to + (start / 4 * tile.rows + r) * 2;
                for (int64_t k = 0; k < count; k += 4, quad += 2 * tile.rows) int8_quad(n + k, quad);
            }
            offset[piece * stride + r] = (int32_t)((uint32_t)sum * FLIP);
        }
    }
}

template <class X> static void int4_tile(const X* x, int32_t* to, float* facts, int64_t inputs, int rows) {
    for (int r = 0; r < rows; r++, x += inputs)
        for (int64_t group = 0; group < inputs / GROUP; group++) {
            const X* from = x + group * GROUP;
            float most = largest(from, GROUP), scale = most / 127.0f;
            bool regular = most > 0 && most < __builtin_inff();
            float inverse = regular ? 127.0f / most : 0.0f;
            int8_t n[GROUP];
            int32_t sum = 0;
            for (int i = 0; i < GROUP; i++) {
                int32_t number = regular ? nearest(value(from + i) * inverse) : 0;
                n[i] = (int8_t)number;
                sum += number;
            }
            for (int j = 0; j < 8; j++) memcpy(to + (group * 8 + j) * rows + r, n + 4 * j, 4);
            facts[(group * rows + r) * 2] = scale;
            facts[(group * rows + r) * 2 + 1] = scale * (float)sum;
        }
}

// ---- a call -------------------------------------------------------------------------------------------------------

struct Work {
    const Weight* weight;
    const Call* call;
    Input input;
    int64_t first;   // row of this pass
    int rows, num_tiles, held;   // held: rows of all tiles, which have one size
    int64_t next_tile, next_unit;
};

INLINE Tile tile_of(const Work& work, int index) {
    int size = work.held / work.num_tiles, first = index * size, left = work.rows - first;
    return {first, left < size ? left : size, size};
}

// The offsets of the rows of an int8 tile in one piece: [pieces][held].
INLINE int32_t* offsets(const Work& work, int64_t piece, int64_t first) {
    return static_cast<int32_t*>(work.input.facts) + piece * work.held + first;
}

template <class X> static void prepare_tile(const Work& work, int index, const X* x) {
    const Input& in = work.input;
    Tile tile = tile_of(work, index);
    int64_t inputs = work.weight->inputs;
    x += (work.first + tile.first) * inputs;
    if constexpr (sizeof(X) == 2) {
        if (in.words && work.weight->kind == BFLOAT16)
            return bfloat16_tile(x, in.bytes + tile.first * in.words, inputs, tile.rows, tile.size);
        if (in.in_pairs) return pair_tile(x, in.bytes + tile.first * in.padded / 2, inputs, tile.rows);
    }
    switch (work.weight->kind) {
        case INT8:
            return int8_tile(x, in.bytes + tile.first * (in.words ? in.words : in.padded / 2), offsets(work, 0, tile.first),
                             work.held, in.step + tile.first, inputs, in.padded, tile, in.words != 0);
        case INT4:
            return int4_tile(x, in.bytes + tile.first * in.padded / 4, static_cast<float*>(in.facts) + tile.first * in.groups * 2,
                             inputs, tile.rows);
        default: return float_tile(x, const_cast<float*>(in.numbers) + tile.first * in.padded, inputs, in.padded, tile.rows);
    }
}

static void prepare(void* argument) {
    Work& work = *static_cast<Work*>(argument);
    for (int64_t index; (index = take(&work.next_tile)) < work.num_tiles;) {
        if (work.call->type == X_FLOAT32)
            prepare_tile(work, (int)index, static_cast<const float*>(work.call->x));
        else
            prepare_tile(work, (int)index, static_cast<const uint16_t*>(work.call->x));
    }
}

template <int R>
static void run_piece(const Work& work, const uint8_t* weight, int64_t start, int inputs, int64_t first, float* total,
                      Ahead ahead) {
    const Input& in = work.input;
    int64_t begin = first * in.padded + start * R;
    switch (work.weight->kind) {
        case FLOAT32:
            if constexpr (R <= TILE[FLOAT32]) float32_piece<R>(weight, in.numbers + begin, total, inputs, ahead);
            break;
        case BFLOAT16:
            if (HAS_PAIRS && in.in_pairs) return pair_piece<R>(weight, in.bytes + begin / 2, total, inputs, ahead);
            if constexpr (R <= TILE[BFLOAT16]) bfloat16_piece<R>(weight, in.numbers + begin, total, inputs, ahead);
            break;
        case INT8:
            if constexpr (R <= TILE[INT8])
                int8_piece<R>(weight, in.bytes + begin / 2, offsets(work, start / PIECE[INT8], first), total, inputs, ahead);
            break;
        case INT4:
            if constexpr (R <= TILE[INT4])
                int4_piece<R>(weight, in.bytes + begin / 4,
                              static_cast<float*>(in.facts) + 2 * (first * in.groups + start / GROUP * R), total, inputs, ahead);
            break;
    }
}

template <int TILES>
static void run_tiles(const Work& work, const uint8_t* weight, int64_t start, int inputs, Tile tile, float* total, Ahead ahead) {
    const Input& in = work.input;
    int kind = work.weight->kind, held = tile.size << (kind == INT8);
    const int32_t* x = in.bytes + tile.first * in.words + start / STEP[kind] * held * STEP_WORDS;
    int64_t apart = tile.size * in.words;
    if (kind == BFLOAT16)
        bfloat16_tiles<TILES>(weight, x, apart, total, inputs, tile.size, ahead);
    else
        int8_tiles<TILES>(weight, x, apart, offsets(work, start / PIECE[INT8], tile.first), total, inputs, tile.size, ahead);
}

static void run_tile(const Work& work, const uint8_t* weight, int64_t start, int inputs, Tile tile, float* total,
                     Ahead ahead) {
    switch (tile.rows) {
#define CASE(R) case R: return run_piece<R>(work, weight, start, inputs, tile.first, total, ahead);
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
    }
}

// The scale and the bias.
INLINE F finished(const Work& work, const float* total, int64_t block, int v, int64_t row) {
    const Weight& w = *work.weight;
    int64_t n = block * BLOCK + v * LANES;
    F found = reinterpret_cast<const F*>(total)[v];
    if (w.kind == INT8) found *= *reinterpret_cast<const LooseF*>(w.scale + n) * work.input.step[row];
    return w.bias ? found + *reinterpret_cast<const LooseF*>(w.bias + n) : found;
}

// X: float, or uint16_t for bfloat16. total: [block of the unit][PASS][BLOCK].
template <class X> static void finish_block(const Work& work, const float* total, int64_t block, int64_t row) {
    const Weight& w = *work.weight;
    int64_t n = block * BLOCK, count = w.outputs - n < BLOCK ? w.outputs - n : BLOCK;
    int64_t place = (work.first + row) * w.outputs + n;
    alignas(64) X residual[BLOCK] = {};
    alignas(64) X y[BLOCK];
    UNROLL for (int v = 0; v < VECS; v++) store(finished(work, total, block, v, row), y + v * LANES);
    if (work.call->residual) {
        memcpy(residual, static_cast<const X*>(work.call->residual) + place, sizeof(X) * (size_t)count);
        asm("" : "+m"(y));   // round before the addition, as PyTorch does: no fused multiply-add
        UNROLL for (int v = 0; v < VECS; v++) store(load(y + v * LANES) + load(residual + v * LANES), y + v * LANES);
    }
    X* to = static_cast<X*>(work.call->y) + place;
    if (count == BLOCK)
        memcpy(to, y, sizeof y);
    else
        memcpy(to, y, sizeof(X) * (size_t)count);
}

// Computes one unit, and returns the next one of this thread.
static int64_t run_unit(Work& work, int64_t unit) {
    const Weight& w = *work.weight;
    alignas(64) float total[MAX_UNIT * PASS * BLOCK];
    int64_t first = unit * w.unit, left = blocks_of(w) - first, padded = work.input.padded, next = 0;
    int blocks = (int)(left < w.unit ? left : w.unit);
    for (int block = 0; block < blocks; block++) memset(total + block * PASS * BLOCK, 0, sizeof(float) * work.held * BLOCK);
    const uint8_t* weight = w.data + first * bytes_of(w.kind, padded);
    for (int64_t start = 0; start < padded; start += PIECE[w.kind]) {
        int inputs = (int)(padded - start < PIECE[w.kind] ? padded - start : PIECE[w.kind]);
        int64_t bytes = bytes_of(w.kind, inputs);
        for (int block = 0; block < blocks; block++, weight += bytes) {
            const uint8_t* ahead = weight + bytes;
            if (start + inputs == padded && block == blocks - 1) {
                next = take(&work.next_unit);   // just in time to ask for its first piece
                ahead = w.data + next * w.unit * bytes_of(w.kind, padded);
            }
            int at_once = work.input.words ? 2 : 1, turns = (int)up(work.num_tiles, at_once);
            for (int turn = 0; turn < turns; turn++) {
                Tile tile = tile_of(work, turn * at_once);
                Ahead share = {reinterpret_cast<const char*>(ahead) + bytes * turn / turns, 128 / turns};
                float* sums = total + (block * PASS + tile.first) * BLOCK;
                auto run = !work.input.words ? run_tile : (turn + 1) * 2 <= work.num_tiles ? run_tiles<2> : run_tiles<1>;
                run(work, weight, start, inputs, tile, sums, share);
            }
        }
    }
    for (int block = 0; block < blocks; block++)
        for (int row = 0; row < work.rows; row++)
            (work.call->type == X_FLOAT32 ? finish_block<float> : finish_block<uint16_t>)(
                work, total + (block * PASS + row) * BLOCK, first + block, row);
    return next;
}

static void run_units(void* argument) {
    Work& work = *static_cast<Work*>(argument);
    int64_t units = up(blocks_of(*work.weight), work.weight->unit);
    if (work.input.words) set_tiles(work.held / work.num_tiles << (work.weight->kind == INT8));
    for (int64_t unit = take(&work.next_unit); unit < units;) unit = run_unit(work, unit);
    if (work.input.words) release_tiles();
}

constexpr int64_t LINE = 16;                     // numbers of 64 bytes
constexpr int64_t WORTH_A_THREAD = 1 << 12;      // numbers of x
constexpr int64_t WORTH_THREADS = 1 << 14;       // products of numbers

// The 32-bit words of one row of x in AMX's tiles; 0 for a product without them.
static int64_t words_in_tiles(const Weight& w, int type, int rows) {
    if (!HAS_TILES || rows < FEWEST_ROWS[w.kind] || (w.kind == BFLOAT16 && type != X_BFLOAT16)) return 0;
    return up(padded_inputs(w), STEP[w.kind]) * STEP_WORDS << (w.kind == INT8);
}

static int num_tiles(const Weight& w, int rows, int64_t words) {
    return (int)up(rows, words ? TILE_ROWS >> (w.kind == INT8) : TILE[w.kind]);
}

static void run_pass(const Weight& w, const Call& call, int64_t first, int rows, char* memory) {
    Work work = {&w, &call, {}, first, rows, 0, 0, 0, 0};
    Input& in = work.input;
    in.padded = padded_inputs(w);
    in.words = words_in_tiles(w, call.type, rows);
    in.in_pairs = HAS_PAIRS && w.kind == BFLOAT16 && call.type == X_BFLOAT16;
    in.groups = w.kind == INT4 ? in.padded / GROUP : up(in.padded, PIECE[w.kind]);
    work.num_tiles = num_tiles(w, rows, in.words);
    work.held = work.num_tiles * (int)up(rows, work.num_tiles);
    if (w.kind <= BFLOAT16 && rows == 1 && call.type == X_FLOAT32 && in.padded == w.inputs) {
        in.numbers = static_cast<const float*>(call.x) + first * w.inputs;   // one row has this form already
    } else {
        in.step = reinterpret_cast<float*>(memory);
        in.facts = in.step + PASS;
        in.numbers = in.step + PASS + up(2 * rows * in.groups, LINE) * LINE;
        in.bytes = reinterpret_cast<int32_t*>(const_cast<float*>(in.numbers));
        parallel(rows * w.inputs < WORTH_A_THREAD ? 1 : call.threads, prepare, &work);
    }
    parallel(w.outputs * w.inputs * rows < WORTH_THREADS ? 1 : call.threads, run_units, &work);
}

static int linear(const Weight& w, const Call& call) {
    if (!call.rows) return 0;
    int64_t most = words_in_tiles(w, call.type, PASS) ? PASS : PASS_WITHOUT_TILES;
    int rows = (int)up(call.rows, up(call.rows, most));   // passes of equal size: a small last one would read the weight alone
    int64_t padded = padded_inputs(w), words = words_in_tiles(w, call.type, rows), tiles = num_tiles(w, rows, words);
    int64_t numbers = words ? tiles * up(rows, tiles) * words : rows * padded;
    size_t bytes = 4 * (PASS + up(2 * rows * up(padded, GROUP), LINE) * LINE + up(numbers, LINE) * LINE);
    alignas(64) char near[1 << 15];
    char* memory = bytes <= sizeof near ? near : static_cast<char*>(aligned_alloc(64, bytes));
    if (!memory) return 1;
    for (int64_t first = 0; first < call.rows; first += rows)
        run_pass(w, call, first, (int)(call.rows - first < rows ? call.rows - first : rows), memory);
    if (memory != near) free(memory);
    return 0;
}

// ---- the yardstick ------------------------------------------------------------------------------------------------

struct Reading {
    const float* data;
    int64_t count, next;
    float sum;
};

constexpr int64_t PORTION = 1 << 16;

static void read_portions(void* argument) {
    Reading& reading = *static_cast<Reading*>(argument);
    F sum[4] = {};
    for (int64_t i; (i = take(&reading.next) * PORTION) < reading.count;)
        for (const float* at = reading.data + i, *end = at + PORTION; at < end; at += 64) {
            for (int line = 0; line < 4; line++) __builtin_prefetch(at + 3072 + 16 * line, 0, 2);
            UNROLL for (int j = 0; j < 64 / LANES; j++) sum[j % 4] += reinterpret_cast<const F*>(at)[j];
        }
    F all = sum[0] + sum[1] + sum[2] + sum[3];
    reading.sum = all[0];   // used, so that nothing is left out
}

static float read_all(const float* data, int64_t count, int threads) {
    Reading reading = {data, count / PORTION * PORTION, 0, 0};
    parallel(threads, read_portions, &reading);
    return reading.sum;
}

#if defined(__AVX512F__)
static bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
}
#endif

static bool runs_here() {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#if defined(__AMX_TILE__)
    return has_avx512() && __builtin_cpu_supports("avx512vnni") && tiles_run_here();
#elif defined(__AVX512BF16__)
    return has_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#elif defined(__AVX512VNNI__)
    return has_avx512() && __builtin_cpu_supports("avx512vnni");
#elif defined(__AVX512F__)
    return has_avx512();
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;   // every ARM Mac has dot products
#endif
#endif
}

// Intel's CPUs multiply pairs of bfloat16 at half the speed of AMD's: with 16 rows, converted numbers are 1.6 times faster.
static bool pays_here() {
#if defined(__AVX512BF16__)
    __builtin_cpu_init();
    return __builtin_cpu_is("amd");
#else
    return true;
#endif
}

}  // namespace

#define LEVEL_OF(name) JOIN(LEVEL_, name)
#define TEXT_OF(name) TEXT(name)
#define TEXT(name) #name
int ATTEND_OF(NAME)(const AttentionCall&);            // attention.cpp, and the others of rows.cpp
void NORM_OF(NAME)(const Norm&, const Rows&);
void LAYER_NORM_OF(NAME)(const LayerNorm&, const Rows&);
void ROTATE_OF(NAME)(const Rotation&, const Rows&);
void GATE_OF(NAME)(const Gate&, const Rows&);
void TOP_K_OF(NAME)(const TopK&, const Rows&);
extern const Level LEVEL_OF(NAME);
const Level LEVEL_OF(NAME) = {TEXT_OF(NAME), FLIP, runs_here, pays_here, linear, ATTEND_OF(NAME), NORM_OF(NAME), LAYER_NORM_OF(NAME),
                              ROTATE_OF(NAME), GATE_OF(NAME), TOP_K_OF(NAME), read_all};

}  // namespace unspool
