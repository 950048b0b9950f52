// Products of tiles with Intel's AMX, for bfloat16 and int8: 16 rows of x by 16 outputs in one instruction.
//
// x: [steps][size][STEP_WORDS], where `size` rows make one tile. A step is 32 inputs of bfloat16, or 64 of int8. The
// rows of an int8 tile are the high bytes of its numbers, then the low bytes. The blocks of a packed weight are tiles
// already. AMX sums each output in one order for all sizes, so a row has the same bits in any company.
#pragma once
#include "vectors.h"

#if defined(__AMX_TILE__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace unspool {
namespace {

constexpr int TILE_ROWS = 16;
constexpr int STEP_WORDS = 16;
constexpr int STEP_BYTES = 2 * TILE_ROWS * STEP_WORDS * 4;   // of the weights of one block
constexpr int STEP[] = {1, 32, 64, 1};                       // inputs of a step, per kind
constexpr int NEVER = 1 << 30;
constexpr int FEWEST_ROWS[] = {NEVER, 1, 4, NEVER};          // that are faster in tiles, per kind; sums of int8 are exact

#if defined(__AMX_TILE__)
constexpr bool HAS_TILES = true;

// Linux grants each process the state of the tiles when it asks.
static bool tiles_run_here() {
    unsigned a, b, c, d;
    constexpr unsigned WANTED = 1u << 22 | 1u << 24 | 1u << 25;   // bfloat16, tiles, int8
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;              // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & WANTED) == WANTED && !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
}

// The tiles 0 to 3 hold sums, 4 and 5 hold x, 6 and 7 hold weights.
static void set_tiles(int rows) {
    struct alignas(64) {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {1, 0, {}, {}, {}};
    for (int tile = 0; tile < 8; tile++) config.bytes[tile] = 64, config.rows[tile] = (uint8_t)(tile < 6 ? rows : TILE_ROWS);
    asm volatile("" : : "r"(&config) : "memory");   // GCC 12 takes the first 8 bytes alone as an input of the next line
    _tile_loadconfig(&config);
}

static void release_tiles() { _tile_release(); }

#define MULTIPLY(sum, x, weight)                                                                        \
    if constexpr (KIND == BFLOAT16) _tile_dpbf16ps(sum, x, weight); else _tile_dpbsud(sum, x, weight)

// Adds the products of a piece to the sums of one tile of x, or of two that lie `apart` words.
template <int KIND, int TILES>
INLINE void add_steps(const uint8_t* weight, const int32_t* x, int64_t apart, int inputs, int size, Ahead ahead) {
    // Hardware prefetchers read the weights of a single turn well, but stop at each 4 KB.
    int share = STEP_BYTES / 128 * ahead.step, most = ahead.step == 128 ? 256 : share;
    for (int left = inputs; left > 0; left -= STEP[KIND], weight += STEP_BYTES, x += size * STEP_WORDS) {
        alignas(64) uint8_t last[STEP_BYTES];
        if (left < STEP[KIND]) {
            int64_t bytes = bytes_of(KIND, left);
            memcpy(last, weight, bytes);
            memset(last + bytes, 0, STEP_BYTES - bytes);
            weight = last;
        }
        asm volatile("" : : "r"(weight), "r"(x) : "memory");   // the next lines read memory
        _tile_loadd(4, x, 64);
        _tile_loadd(6, weight, 4 * BLOCK);
        MULTIPLY(0, 4, 6);
        _tile_loadd(7, weight + 64, 4 * BLOCK);
        MULTIPLY(1, 4, 7);
        for (int line = 0; line < most; line += 64) __builtin_prefetch(ahead.next + line, 0, 2);
        ahead.next += share;
        if constexpr (TILES == 2) {
            _tile_loadd(5, x + apart, 64);
            MULTIPLY(2, 5, 6);
            MULTIPLY(3, 5, 7);
        }
    }
}

// total: of the first row of the first tile.
template <int TILES>
PIECE_FUNCTION bfloat16_tiles(const uint8_t* weight, const int32_t* x, int64_t apart, float* total, int inputs, int size, Ahead ahead) {
    float* second = total + size * BLOCK;
    asm volatile("" : : "r"(total) : "memory");
    _tile_loadd(0, total, 4 * BLOCK);
    _tile_loadd(1, total + BLOCK / 2, 4 * BLOCK);
    if constexpr (TILES == 2) {
        _tile_loadd(2, second, 4 * BLOCK);
        _tile_loadd(3, second + BLOCK / 2, 4 * BLOCK);
    }
    add_steps<BFLOAT16, TILES>(weight, x, apart, inputs, size, ahead);
    _tile_stored(0, total, 4 * BLOCK);
    _tile_stored(1, total + BLOCK / 2, 4 * BLOCK);
    if constexpr (TILES == 2) {
        _tile_stored(2, second, 4 * BLOCK);
        _tile_stored(3, second + BLOCK / 2, 4 * BLOCK);
    }
}

template <int TILES>
PIECE_FUNCTION int8_tiles(const uint8_t* weight, const int32_t* x, int64_t apart, const int32_t* offset, float* total, int inputs,
                          int size, Ahead ahead) {
    alignas(64) uint32_t sums[TILES][TILE_ROWS][BLOCK];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    add_steps<INT8, TILES>(weight, x, apart, inputs, 2 * size, ahead);
    _tile_stored(0, sums, 4 * BLOCK);
    _tile_stored(1, &sums[0][0][BLOCK / 2], 4 * BLOCK);
    if constexpr (TILES == 2) {
        _tile_stored(2, sums[1], 4 * BLOCK);
        _tile_stored(3, &sums[1][0][BLOCK / 2], 4 * BLOCK);
    }
    for (int tile = 0; tile < TILES; tile++)
        for (int r = 0; r < size; r++, total += BLOCK, offset++)
            UNROLL for (int v = 0; v < VECS; v++) {
                U high = reinterpret_cast<const U*>(sums[tile][r])[v], low = reinterpret_cast<const U*>(sums[tile][size + r])[v];
                reinterpret_cast<F*>(total)[v] += converted((I)((high << 8) + low - (uint32_t)*offset));
            }
}

static void bfloat16_tile(const uint16_t* x, int32_t* to, int64_t inputs, int rows, int size) {
    constexpr int COUNT = STEP[BFLOAT16];
    memset(to, 0, rows < size || inputs % COUNT ? up(inputs, COUNT) * size * STEP_WORDS * 4 : 0);
    for (int r = 0; r < rows; r++, x += inputs) {
        char* at = reinterpret_cast<char*>(to + r * STEP_WORDS);
        int64_t start = 0;
        for (; start + COUNT <= inputs; start += COUNT, at += size * STEP_WORDS * 4) memcpy(at, x + start, 2 * COUNT);
        memcpy(at, x + start, 2 * (inputs - start));
    }
}

// Splits 64 numbers of 16 bits into high and low bytes: n = 256 * high + low.
INLINE void int8_step(const int32_t* n, int32_t* to, int size) {
    int8_t* high = reinterpret_cast<int8_t*>(to);
    int8_t* low = reinterpret_cast<int8_t*>(to + size * STEP_WORDS);
    for (int k = 0; k < STEP[INT8]; k++) high[k] = (int8_t)((n[k] + 128) >> 8), low[k] = (int8_t)n[k];
}

#else   // the functions are not called
constexpr bool HAS_TILES = false;
INLINE void set_tiles(int) {}
INLINE void release_tiles() {}
template <int> void bfloat16_tiles(const uint8_t*, const int32_t*, int64_t, float*, int, int, Ahead) {}
template <int> void int8_tiles(const uint8_t*, const int32_t*, int64_t, const int32_t*, float*, int, int, Ahead) {}
INLINE void bfloat16_tile(const uint16_t*, int32_t*, int64_t, int, int) {}
INLINE void int8_step(const int32_t*, int32_t*, int) {}
#endif

// Rows that share one reading of the weights.
constexpr int PASS_WITHOUT_TILES = 64;
constexpr int PASS = HAS_TILES ? 256 : PASS_WITHOUT_TILES;

}  // namespace
}  // namespace unspool
