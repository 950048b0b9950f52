// The C interface of the library: the choice of a level, threads, packing. Compiled for the lowest CPU of its kind.
#include "kernels.h"

#include <cstring>

namespace unspool {

extern const Level LEVEL_avx2, LEVEL_avx512, LEVEL_avx512vnni, LEVEL_neon;

// Best first.
#if defined(__x86_64__)
static const Level* const LEVELS[] = {&LEVEL_avx512vnni, &LEVEL_avx512, &LEVEL_avx2};
#elif defined(__aarch64__)
static const Level* const LEVELS[] = {&LEVEL_neon};
#else
#error "there are kernels for x86-64 and for 64-bit ARM only"
#endif

static const Level* level = nullptr;

// The entry points of PyTorch's OpenMP runtime: GNU's, or LLVM's. The library links no runtime of its own, so that a
// process has one pool of threads.
using Body = void (*)(void*);
static void (*gnu_parallel)(Body, void*, unsigned, unsigned);
static void (*llvm_fork)(void*, int32_t, void (*)(int32_t*, int32_t*, void*), ...);
static void (*llvm_push_num_threads)(void*, int32_t, int32_t);
static int32_t (*llvm_thread)(void*);

struct Task {
    Body body;
    void* argument;
};

static void llvm_body(int32_t*, int32_t*, void* task) {
    static_cast<Task*>(task)->body(static_cast<Task*>(task)->argument);
}

void parallel(int threads, Body body, void* argument) {
    if (threads <= 1) return body(argument);
    if (gnu_parallel) return gnu_parallel(body, argument, (unsigned)threads, 0);
    // `ident_t` of LLVM's runtime: the flag 2 marks its own calls.
    static struct { int32_t reserved, flags, more[2]; const char* source; } place = {0, 2, {0, 0}, ";unknown;unknown;0;0;;"};
    Task task = {body, argument};
    llvm_push_num_threads(&place, llvm_thread(&place), threads);
    llvm_fork(&place, 1, llvm_body, &task);
}

// ---- packing ------------------------------------------------------------------------------------------------------

// Mirrored by `_Matrix` in packed.py. `numbers` has the type of the kind: float, bfloat16, int8; uint8 0 to 15 for int4.
struct Matrix {
    uint8_t* numbers;        // [outputs, inputs]
    int64_t row, column;     // strides, in numbers
    uint16_t* scales;        // int4: (scale, zero) in bfloat16, [inputs / 32][outputs][2]; otherwise null
};

struct Packing {
    const Weight* weight;
    const Matrix* matrices;
    bool back;       // from the stream to the matrices
    int64_t next;
};

static void copy(bool back, void* packed, void* plain, size_t size) {
    back ? memcpy(plain, packed, size) : memcpy(packed, plain, size);
}

static void copy_nibble(bool back, uint8_t* packed, uint8_t* plain, int shift) {
    if (back)
        *plain = *packed >> shift & 15;
    else
        *packed = (uint8_t)((*packed & ~(15 << shift)) | (*plain & 15) << shift);
}

// Copies the inputs [start, start + count) of one block. Padding stays zero.
static void copy_piece(const Packing& packing, const Matrix& matrix, uint8_t* to, int64_t n0, int64_t start, int64_t count) {
    const Weight& w = *packing.weight;
    int64_t outputs = w.outputs - n0 < BLOCK ? w.outputs - n0 : BLOCK;
    int64_t rest = w.inputs - start, inputs = rest < count ? rest : count;
    bool back = packing.back;
    if (!back) memset(to, w.kind == INT8 ? level->flip : 0, bytes_of(w.kind, count));
    for (int64_t n = 0; n < outputs; n++) {
        int size = w.kind == FLOAT32 ? 4 : w.kind == BFLOAT16 ? 2 : 1;
        uint8_t* from = matrix.numbers + ((n0 + n) * matrix.row + start * matrix.column) * size;
        for (int64_t k = 0; k < inputs; k++, from += matrix.column * size) {
            uint8_t* place;
            switch (w.kind) {
                case FLOAT32: copy(back, to + (k * BLOCK + n) * 4, from, 4); break;
                case BFLOAT16: copy(back, to + ((k / 2 * BLOCK + n) * 2 + k % 2) * 2, from, 2); break;
                case INT8:
                    place = to + (k / 4 * BLOCK + n) * 4 + k % 4;
                    if (back)
                        *from = *place ^ level->flip;
                    else
                        *place = *from ^ level->flip;
                    break;
                case INT4:
                    uint8_t* group = to + k / GROUP * GROUP_BYTES;
                    if (k % GROUP == 0)
                        copy(back, group + n * 4, matrix.scales + (((start + k) / GROUP * w.outputs) + n0 + n) * 2, 4);
                    place = group + 4 * BLOCK + (k % 16 / 4 * BLOCK + n) * 4 + k % 4;
                    copy_nibble(back, place, from, k % GROUP < 16 ? 0 : 4);
                    break;
            }
        }
    }
}

static void copy_units(void* argument) {
    Packing& packing = *static_cast<Packing*>(argument);
    const Weight& w = *packing.weight;
    int64_t padded = padded_inputs(w), units = up(blocks_of(w), w.unit);
    for (int64_t unit; (unit = take(&packing.next)) < units;) {
        int64_t first = unit * w.unit, left = blocks_of(w) - first;
        int64_t blocks = left < w.unit ? left : w.unit;
        uint8_t* to = w.data + first * bytes_of(w.kind, padded);
        for (int64_t start = 0; start < padded; start += PIECE[w.kind]) {
            int64_t count = padded - start < PIECE[w.kind] ? padded - start : PIECE[w.kind];
            for (int64_t block = first; block < first + blocks; block++, to += bytes_of(w.kind, count))
                copy_piece(packing, packing.matrices[block & w.gated], to, (block >> w.gated) * BLOCK, start, count);
        }
    }
}

}  // namespace unspool

using namespace unspool;

#define PUBLIC extern "C" __attribute__((visibility("default")))

// Chooses the level with this name, or the best one that runs here for "". Returns its name, or null.
PUBLIC const char* unspool_choose(const char* name) {
    for (const Level* each : LEVELS)
        if (each->runs_here() && (!*name || !strcmp(name, each->name))) {
            level = each;
            return each->name;
        }
    return nullptr;
}

// Sets the entry points of PyTorch's OpenMP runtime; either `gnu`, or the three others, are not null.
PUBLIC void unspool_set_threads(void* gnu, void* fork, void* push, void* thread) {
    gnu_parallel = reinterpret_cast<decltype(gnu_parallel)>(gnu);
    llvm_fork = reinterpret_cast<decltype(llvm_fork)>(fork);
    llvm_push_num_threads = reinterpret_cast<decltype(llvm_push_num_threads)>(push);
    llvm_thread = reinterpret_cast<decltype(llvm_thread)>(thread);
}

// The bytes of the stream of a weight.
PUBLIC int64_t unspool_bytes(const Weight* weight) { return blocks_of(*weight) * bytes_of(weight->kind, padded_inputs(*weight)); }

// Copies one matrix, or two of a gated weight, into the stream; or back.
PUBLIC void unspool_pack(const Weight* weight, const Matrix* matrices, int32_t back, int32_t threads) {
    Packing packing = {weight, matrices, back != 0, 0};
    parallel(threads, copy_units, &packing);
}

// Computes y; returns 0, or 1 without memory.
PUBLIC int32_t unspool_linear(const Weight* weight, const void* x, void* y, const void* residual, int64_t rows, int32_t type,
                              int32_t threads) {
    return level->linear(*weight, {x, y, residual, rows, type, threads});
}

// Reads memory that is aligned to 64 bytes, all but less than 256 KB, and returns something: a yardstick.
PUBLIC float unspool_read(const float* data, int64_t count, int32_t threads) { return level->read(data, count, threads); }
