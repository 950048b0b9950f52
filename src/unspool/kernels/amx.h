// Products of tiles with Intel's AMX, for bfloat16 and int8: 16 rows of x by 16 outputs in one instruction.
//
// x: per tile [steps][rows][16 words]. A step is 32 inputs of bfloat16, or 64 of int8. With int8, a row of x takes two rows of
// the tile: the high bytes of its numbers, then the low bytes. The blocks of a packed weight are tiles already. AMX sums each
// output in one order for all sizes, so a row has the same bits in any company.
#pragma once
#include "pieces.h"

namespace unspool::NAME {
namespace {

#if defined(__AMX_TILE__)
constexpr int TILE_ROWS = 16, WORDS = 16, STEP_BYTES = 2 * TILE_ROWS * WORDS * 4;   // of the weights of one block

#define MULTIPLY(sum, x, weight) \
    if constexpr (KIND == BFLOAT16) _tile_dpbf16ps(sum, x, weight); else _tile_dpbsud(sum, x, weight)

// KIND: BFLOAT16 or INT8.
template <int KIND> struct Tiles {
    static constexpr int STEP = KIND == INT8 ? 64 : 32, BYTES = KIND == INT8 ? 2 : 1;   // BYTES: rows of one row of x
    static constexpr int ROWS = TILE_ROWS / BYTES, AT_ONCE = 2, MOST = AT_ONCE, MOST_ROWS = 256, FEW_ROWS = 0;
    static constexpr int MULTIPLE = STEP, SHARE = 2, SPACING = Int8::SPACING, FACTS = Int8::FACTS;
    static constexpr bool IS_BFLOAT16 = KIND == BFLOAT16;

    static int side(int, int size) { return size; }
    static int parts(int rows, int size) { return (int)up(rows, size); }

    // The tiles 0 to 3 hold sums, 4 and 5 hold x, 6 and 7 hold weights.
    static void begin(const Input& in) {
        struct alignas(64) {
            uint8_t palette, start, reserved[14];
            uint16_t bytes[16];
            uint8_t rows[16];
        } config = {1, 0, {}, {}, {}};
        for (int tile = 0; tile < 8; tile++) {
            config.bytes[tile] = 64;
            config.rows[tile] = (uint8_t)(tile < 6 ? in.size * BYTES : TILE_ROWS);
        }
        asm volatile("" : : "r"(&config) : "memory");   // GCC 12 takes the first 8 bytes alone as an input of the next line
        _tile_loadconfig(&config);
    }
    static void end() { _tile_release(); }

    template <class X> static void prepare(const X* x, const Input& in, int64_t first, int rows) {
        int64_t apart = in.size * WORDS;
        int32_t* to = in.x + first * in.length / SHARE;
        for (int r = 0; r < rows; r++, x += in.inputs, to += WORDS) {
            if constexpr (KIND == INT8) {
                int32_t* at = to;
                Int8::round_row<STEP>(x, in, first + r, [&](const int32_t* n) __attribute__((always_inline)) {
                    int8_t *high = reinterpret_cast<int8_t*>(at), *low = reinterpret_cast<int8_t*>(at + apart);
                    for (int i = 0; i < STEP; i++) high[i] = (int8_t)((n[i] + 128) >> 8), low[i] = (int8_t)n[i];   // 256 high + low
                    at += 2 * apart;
                });
            } else {
                int64_t k = 0;
                for (; k + STEP <= in.inputs; k += STEP) memcpy(to + k / STEP * apart, x + k, 4 * WORDS);
                if (k < in.inputs) memset(to + k / STEP * apart, 0, 4 * WORDS), memcpy(to + k / STEP * apart, x + k, 2 * (in.inputs - k));
            }
        }
    }

    // N: tiles at once.
    template <int N> PIECE_FUNCTION piece(const Part& part) {
        Part p = part;
        alignas(64) uint32_t sums[2 * TILE_ROWS][BLOCK];
        alignas(64) uint8_t last[STEP_BYTES];
        int rows = p.size * BYTES;
        int64_t apart = p.size * p.length / SHARE;
        uint32_t *first = KIND == INT8 ? sums[0] : reinterpret_cast<uint32_t*>(p.total), *second = first + rows * BLOCK;
        asm volatile("" : : "r"(first) : "memory");   // the next lines read memory
        if constexpr (KIND == INT8) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        } else {
            _tile_loadd(0, first, 4 * BLOCK);
            _tile_loadd(1, first + BLOCK / 2, 4 * BLOCK);
            if constexpr (N == 2) {
                _tile_loadd(2, second, 4 * BLOCK);
                _tile_loadd(3, second + BLOCK / 2, 4 * BLOCK);
            }
        }
        // Hardware prefetchers read one stream of a single turn well, but stop at each 4 KB.
        int share = STEP_BYTES / 128 * p.ahead.step, most = p.ahead.step == 128 && !p.ahead.last ? 256 : share;
        for (int left = p.inputs; left > 0; left -= STEP, p.weight += STEP_BYTES, p.x += rows * WORDS) {
            if (left < STEP) {
                int64_t bytes = bytes_of(KIND, left);
                memcpy(last, p.weight, bytes);
                memset(last + bytes, 0, STEP_BYTES - bytes);
                p.weight = last;
            }
            asm volatile("" : : "r"(p.weight), "r"(p.x) : "memory");
            _tile_loadd(4, p.x, 64);
            _tile_loadd(6, p.weight, 4 * BLOCK);
            MULTIPLY(0, 4, 6);
            _tile_loadd(7, p.weight + 64, 4 * BLOCK);
            MULTIPLY(1, 4, 7);
            for (int line = 0; line < most; line += 64) __builtin_prefetch(p.ahead.next + line, 0, 2);
            p.ahead.pass(share);
            if constexpr (N == 2) {
                _tile_loadd(5, p.x + apart, 64);
                MULTIPLY(2, 5, 6);
                MULTIPLY(3, 5, 7);
            }
        }
        _tile_stored(0, first, 4 * BLOCK);
        _tile_stored(1, first + BLOCK / 2, 4 * BLOCK);
        if constexpr (N == 2) {
            _tile_stored(2, second, 4 * BLOCK);
            _tile_stored(3, second + BLOCK / 2, 4 * BLOCK);
        }
        if constexpr (KIND == INT8)
            for (int r = 0; r < N * p.size; r++, p.total += BLOCK)
                UNROLL for (int v = 0; v < BLOCK; v += LANES) {
                    const uint32_t* high = sums[r + r / p.size * p.size] + v;
                    U whole = (*reinterpret_cast<const U*>(high) << 8) + *reinterpret_cast<const U*>(high + p.size * BLOCK);
                    *reinterpret_cast<F*>(p.total + v) += converted((I)(whole - (uint32_t)p.facts[r]));
                }
    }
};
#endif

}  // namespace
}  // namespace unspool::NAME
