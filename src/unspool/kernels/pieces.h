// How the kinds of weights are multiplied, on one instruction set.
//
// A kind of product is a class: how it prepares rows of x, and how it multiplies a piece of one block by a tile of rows.
// FEW_ROWS: the most rows for which the prefetchers of some CPUs are faster alone. More rows compute so long that they fall back.
// Each output of each row is summed in one order for any number of rows: pieces in turn, and the inputs of a piece in turn.
// Integers are summed exactly. So a row has the same bits in any company and on all levels, except for bfloat16 weights and
// inputs, which a level can multiply in pairs or in tiles.
#pragma once
#include "vectors.h"

#include <type_traits>

namespace unspool::NAME {
namespace {

// Rows of a tile, per kind: their accumulators fill the registers.
#if defined(__AVX512VNNI__)
constexpr int TILE[] = {8, 8, 6, 6};
#elif defined(__AVX512F__)
constexpr int TILE[] = {8, 8, 8, 6};
#elif defined(__AVX2__)
constexpr int TILE[] = {3, 3, 2, 2};
#else
constexpr int TILE[] = {3, 3, 1, 1};
#endif

// Asks for memory that is read later: the tiles of a piece share the next piece. Hardware prefetchers stop at each 4 KB,
// and sleep while the second tile of a piece computes. A share is asked for in parts side by side.
struct Ahead {
    const char* next;
    int step;       // bytes for each 128 bytes of weights: 128 for one tile, 0 to ask for nothing
    int64_t part;   // bytes
    int last;       // index of the last part
    int turn = 0;

    void move() {
        if (!step) return;
        __builtin_prefetch(next, 0, 2);
        if (step == 128) __builtin_prefetch(next + 64, 0, 2);
        pass(step);
    }

    void pass(int64_t bytes) { next += ++turn & last ? part : bytes - last * part; }
};

// Rows of x as a kind of product reads them. They are split into tiles of one size; the last one can have fewer rows.
struct Input {
    int64_t inputs, length;   // of a row, and filled up
    int size, held;           // rows of a tile, and of all tiles
    int32_t* x;               // tile by tile, in the order of the kind; SHARE inputs of a row are one word
    int32_t* facts;           // [length / SPACING][held][FACTS]
    float* step;              // int8: [held], the scales of the rows
};

// A piece of one block, and the same inputs of a tile of x.
struct Part {
    const uint8_t* weight;
    const int32_t *x, *facts;
    float* total;   // [rows][BLOCK]
    int inputs, size, held;
    int64_t length;
    Ahead ahead;
};

// The parts that all kinds without AMX share.
struct Kind {
    static constexpr int AT_ONCE = 1, MOST_ROWS = 64;   // tiles in one call of `piece`; rows that share one reading of weights
    static constexpr bool IS_BFLOAT16 = false;          // whether x must be bfloat16
    static int side(int rows, int) { return rows; }     // rows of a tile that lie side by side, from the rows of a turn
    static int parts(int rows, int) { return rows; }    // N of piece<N>, at most MOST
    static void begin(const Input&) {}
    static void end() {}
};

// Calls use(count) with the count as a constant, at most MOST.
template <int MOST, class Use> INLINE void with_constant(int count, Use use) {
    if constexpr (MOST > 1)
        if (count < MOST) return with_constant<MOST - 1>(count, use);
    use(std::integral_constant<int, MOST>());
}

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

// x: float32 [length][rows].
struct Float32 : Kind {
    static constexpr int ROWS = TILE[FLOAT32], MOST = ROWS, MULTIPLE = 1, SHARE = 1, SPACING = 1 << 30, FACTS = 0, FEW_ROWS = 5;

    // Input after input, so that each line of the tile is written once.
    template <class X> static void prepare(const X* x, const Input& in, int64_t first, int rows) {
        float* to = reinterpret_cast<float*>(in.x) + first * in.length;
        with_constant<ROWS>(rows, [&](auto count) {
            constexpr int R = decltype(count)::value;
            for (int64_t k = 0; k < in.inputs; k++)
                UNROLL for (int r = 0; r < R; r++) *to++ = value(x + r * in.inputs + k);
        });
        for (int64_t k = in.inputs * rows; k < in.length * rows; k++) *to++ = 0;
    }

    template <int R> PIECE_FUNCTION piece(const Part& part) {
        Part p = part;
        const float* x = reinterpret_cast<const float*>(p.x);
        F sum[R][VECS] = {};
        for (int k = 0; k < p.inputs; k++, p.weight += 4 * BLOCK, x += R) {
            p.ahead.move();
            add<R>(sum, x, [&](int v) __attribute__((always_inline)) { return reinterpret_cast<const F*>(p.weight)[v]; });
        }
        add_to<R>(p.total, sum);
    }
};

struct Bfloat16 : Float32 {
    static constexpr int ROWS = TILE[BFLOAT16], MOST = ROWS, MULTIPLE = 2;

    template <int R> PIECE_FUNCTION piece(const Part& part) {
        Part p = part;
        const float* x = reinterpret_cast<const float*>(p.x);
        F sum[R][VECS] = {};
        for (int k = 0; k < p.inputs; k += 2, p.weight += 4 * BLOCK, x += 2 * R) {
            const U* pairs = reinterpret_cast<const U*>(p.weight);
            p.ahead.move();
            add<R>(sum, x, [&](int v) __attribute__((always_inline)) { return low_half(pairs[v]); });
            add<R>(sum, x + R, [&](int v) __attribute__((always_inline)) { return high_half(pairs[v]); });
        }
        add_to<R>(p.total, sum);
    }
};

#if defined(__AVX512BF16__)
// Both numbers of a pair at once: twice as many products per instruction. x: bfloat16 [length / 2][rows][2].
struct Pairs : Kind {
    static constexpr int ROWS = TILE[BFLOAT16], MOST = ROWS, MULTIPLE = 2, SHARE = 2, SPACING = 1 << 30, FACTS = 0, FEW_ROWS = 5;
    static constexpr bool IS_BFLOAT16 = true;

    static void prepare(const uint16_t* x, const Input& in, int64_t first, int rows) {
        int32_t* to = in.x + first * in.length / SHARE;
        with_constant<ROWS>(rows, [&](auto count) {
            constexpr int R = decltype(count)::value;
            int64_t k = 0;
            for (; k + 1 < in.inputs; k += 2, to += R)
                UNROLL for (int r = 0; r < R; r++) memcpy(to + r, x + r * in.inputs + k, 4);
            if (k < in.inputs)
                for (int r = 0; r < R; r++) to[r] = x[r * in.inputs + k];
        });
    }

    template <int R> PIECE_FUNCTION piece(const Part& part) {
        Part p = part;
        F sum[R][VECS] = {};
        for (int k = 0; k < p.inputs; k += 2, p.weight += 4 * BLOCK, p.x += R) {
            p.ahead.move();
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int v = 0; v < VECS; v++)
                    sum[r][v] = (F)_mm512_dpbf16_ps((__m512)sum[r][v], reinterpret_cast<const __m512bh*>(p.weight)[v],
                                                    (__m512bh)_mm512_set1_epi32(p.x[r]));
        }
        add_to<R>(p.total, sum);
    }
};
#else
using Pairs = Bfloat16;
#endif

// ---- products of bytes --------------------------------------------------------------------------------------------
//
// int8: x has 16 bits, x = 256 * high + low with two signed bytes. A level with byte products multiplies both; the
// others multiply 16-bit numbers. The sum of a piece fits 32 bits: 512 * 127 * (127 * 256 + 128) < 2**31.
// int4: x has 8 bits and a scale per group; nibbles are unsigned.

#if defined(__AVX512VNNI__)
constexpr uint8_t FLIP = 128;
INLINE I dot(I sum, I bytes, int32_t x) { return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)bytes, _mm512_set1_epi32(x)); }
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr uint8_t FLIP = 0;
INLINE I dot(I sum, I bytes, int32_t x) {
    return (I)vdotq_s32((int32x4_t)sum, vreinterpretq_s8_s32((int32x4_t)bytes), vreinterpretq_s8_s32(vdupq_n_s32(x)));
}
#endif
#if defined(__AVX512VNNI__) || defined(__ARM_FEATURE_DOTPROD)
constexpr int DIGITS = 2;
INLINE void add_products(I (&sum)[DIGITS], I bytes, const int32_t* x) {
    UNROLL for (int d = 0; d < DIGITS; d++) sum[d] = dot(sum[d], bytes, x[d]);
}
INLINE I nibble_dot(I sum, I bytes, int32_t x) { return dot(sum, bytes, x); }
INLINE I nibble_sum(I sum) { return sum; }
#else
constexpr int DIGITS = 1;
constexpr uint8_t FLIP = 0;
#if defined(__AVX512F__)
INLINE I pairs(I a, I b) { return (I)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
INLINE I byte_pairs(I a, I b) { return (I)_mm512_maddubs_epi16((__m512i)a, (__m512i)b); }
#else
INLINE I pairs(I a, I b) { return (I)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
INLINE I byte_pairs(I a, I b) { return (I)_mm256_maddubs_epi16((__m256i)a, (__m256i)b); }
#endif
INLINE void add_products(I (&sum)[DIGITS], I bytes, const int32_t* x) {
    sum[0] += pairs((I)((S)bytes << 8 >> 8), I{} + x[0]);
    sum[0] += pairs((I)((S)bytes >> 8), I{} + x[1]);
}
// Sums of 8 pairs of products fit 16 bits: 8 * 2 * 15 * 127 < 2**15.
INLINE I nibble_dot(I sum, I bytes, int32_t x) { return (I)((S)sum + (S)byte_pairs(bytes, I{} + x)); }
INLINE I nibble_sum(I sum) { return pairs(sum, I{} + 0x10001); }
#endif

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

// Rounds numbers to integers of at most `limit`, and returns their sum. most: the largest absolute value of the numbers; if it
// is 0 or not finite, the integers are 0.
template <class X, class N> INLINE int32_t round_to(N* n, const X* x, int64_t count, float most, float limit) {
    int32_t sum = 0;
    bool regular = most > 0 && most < __builtin_inff();
    float inverse = regular ? limit / most : 0.0f;
    for (int64_t k = 0; k < count; k++) {
        int32_t number = regular ? nearest(value(x + k) * inverse) : 0;
        n[k] = (N)number;
        sum += number;
    }
    return sum;
}

// x: [length / 4][rows][2 words]. facts: the sum of a piece of x, times FLIP.
struct Int8 : Kind {
    static constexpr int ROWS = TILE[INT8], MOST = ROWS, MULTIPLE = 4, SHARE = 2, SPACING = PIECE[INT8], FACTS = 1, FEW_ROWS = 3;

    // Calls use(integers) for each N inputs in turn.
    template <int N, class X, class Use> INLINE void round_row(const X* x, const Input& in, int64_t row, Use use) {
        float most = largest(x, in.inputs);
        in.step[row] = most / 32512.0f;
        bool regular = most > 0 && most < __builtin_inff();
        float inverse = regular ? 32512.0f / most : 0.0f;
        for (int64_t start = 0; start < in.length; start += SPACING) {
            int32_t n[SPACING] = {}, sum = 0;
            int64_t given = least(in.inputs - start, SPACING);
            if (regular)
                for (int64_t k = 0; k < given; k++) n[k] = nearest(value(x + start + k) * inverse);
            for (int64_t k = 0; k < given; k++) sum += n[k];
            for (int64_t k = 0, count = least(in.length - start, SPACING); k < count; k += N) use(n + k);
            in.facts[start / SPACING * in.held + row] = (int32_t)((uint32_t)sum * FLIP);
        }
    }

    template <class X> static void prepare(const X* x, const Input& in, int64_t first, int rows) {
        int32_t* tile = in.x + first * in.length / SHARE;
        for (int r = 0; r < rows; r++, x += in.inputs, tile += 2) {
            int32_t* to = tile;
            round_row<4>(x, in, first + r, [&](const int32_t* n) __attribute__((always_inline)) {
                uint32_t a = (uint32_t)n[0], b = (uint32_t)n[1], c = (uint32_t)n[2], d = (uint32_t)n[3], high = 0, low = 0;
                if (DIGITS == 2) {
                    high |= (a + 128) >> 8 & 255, low |= a & 255;
                    high |= (b + 128) & 0xff00, low |= (b & 255) << 8;
                    high |= ((c + 128) & 0xff00) << 8, low |= (c & 255) << 16;
                    high |= ((d + 128) & 0xff00) << 16, low |= d << 24;
                } else {
                    high = (a & 0xffff) | c << 16, low = (b & 0xffff) | d << 16;
                }
                to[0] = (int32_t)high, to[1] = (int32_t)low;
                to += 2 * rows;
            });
        }
    }

    template <int R> PIECE_FUNCTION piece(const Part& part) {
        Part p = part;
        I sum[R][VECS][DIGITS] = {};
        for (int k = 0; k < p.inputs; k += 4, p.weight += 4 * BLOCK, p.x += 2 * R) {
            p.ahead.move();
            const I* w = reinterpret_cast<const I*>(p.weight);
            if constexpr (DIGITS == 2) {   // each order keeps the sums in registers
                UNROLL for (int r = 0; r < R; r++)
                    UNROLL for (int v = 0; v < VECS; v++) add_products(sum[r][v], w[v], p.x + 2 * r);
            } else {
                UNROLL for (int v = 0; v < VECS; v++)
                    UNROLL for (int r = 0; r < R; r++) add_products(sum[r][v], w[v], p.x + 2 * r);
            }
        }
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < VECS; v++) {
                // Unsigned arithmetic wraps: only the last result must fit 32 bits.
                U whole = (U)sum[r][v][0];
                if (DIGITS == 2) whole = (whole << 8) + (U)sum[r][v][DIGITS - 1];
                if (FLIP) whole -= (uint32_t)p.facts[r];
                reinterpret_cast<F*>(p.total + r * BLOCK)[v] += converted((I)whole);
            }
    }
};

// x: bytes [length / 4][rows][4]. facts: floats, the scale and the sum of a group of x.
struct Int4 : Kind {
    static constexpr int ROWS = TILE[INT4], MOST = ROWS, MULTIPLE = GROUP, SHARE = 4, SPACING = GROUP, FACTS = 2, FEW_ROWS = 2;

    template <class X> static void prepare(const X* x, const Input& in, int64_t first, int rows) {
        for (int r = 0; r < rows; r++, x += in.inputs)
            for (int64_t group = 0; group < in.length / GROUP; group++) {
                float most = largest(x + group * GROUP, GROUP), scale = most / 127.0f;
                int8_t n[GROUP];
                float sum = scale * (float)round_to(n, x + group * GROUP, GROUP, most, 127.0f);
                int32_t* to = in.x + first * in.length / SHARE + group * 8 * rows + r;
                for (int j = 0; j < 8; j++) memcpy(to + j * rows, n + 4 * j, 4);
                int32_t* facts = in.facts + (group * in.held + first + r) * FACTS;
                memcpy(facts, &scale, 4), memcpy(facts + 1, &sum, 4);
            }
    }

    template <int R> PIECE_FUNCTION piece(const Part& part) {
        Part p = part;
        F found[R][VECS];
        const float* facts = reinterpret_cast<const float*>(p.facts);
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < VECS; v++) found[r][v] = reinterpret_cast<F*>(p.total + r * BLOCK)[v];
        for (int k = 0; k < p.inputs; k += GROUP, p.weight += GROUP_BYTES, p.x += 8 * R, facts += FACTS * p.held) {
            UNROLL for (int line = 0; line < GROUP_BYTES; line += 128) p.ahead.move();
            const I* numbers = reinterpret_cast<const I*>(p.weight + 4 * BLOCK);
            UNROLL for (int v = 0; v < VECS; v += 2) {   // two vectors at a time, so that the sums stay in registers
                I sum[R][2] = {};
                UNROLL for (int j = 0; j < 8; j++) {
                    const I* both = numbers + j / 2 * VECS + v;
                    UNROLL for (int i = 0; i < 2; i++) {
                        I some = (j % 2 ? (I)((U)both[i] >> 4) : both[i]) & 0x0f0f0f0f;
                        UNROLL for (int r = 0; r < R; r++) sum[r][i] = nibble_dot(sum[r][i], some, p.x[(j / 2 + j % 2 * 4) * R + r]);
                    }
                }
                UNROLL for (int i = 0; i < 2; i++) {
                    U pair = reinterpret_cast<const U*>(p.weight)[v + i];
                    F scale = low_half(pair), zero = high_half(pair) - 8.0f * scale;
                    UNROLL for (int r = 0; r < R; r++) {
                        found[r][v + i] += converted(nibble_sum(sum[r][i])) * (scale * facts[2 * r]);
                        found[r][v + i] += zero * facts[2 * r + 1];
                    }
                }
            }
        }
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int v = 0; v < VECS; v++) reinterpret_cast<F*>(p.total + r * BLOCK)[v] = found[r][v];
    }
};

}  // namespace
}  // namespace unspool::NAME
