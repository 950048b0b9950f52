// The types that the sources of the library share: a packed weight, a call, and one instruction set level.
//
// A packed weight holds y = x W^T in blocks of 32 outputs, as one sequential stream:
//
//     [unit][piece][block of the unit][bytes of the piece]
//
// A piece is a range of inputs whose weights fit the first-level cache. The blocks of a unit read the same piece of x.
//
//     float32   [inputs][32]                                        4 bytes
//     bfloat16  [inputs / 2][32][2]                                 two inputs side by side
//     int8      [inputs / 4][32][4]                                 plus 128 if the level multiplies unsigned bytes
//     int4      [inputs / 32]{ (scale, zero) bfloat16 [32][2], nibbles [4][32][4] }
//
// The low nibbles of byte row j are the inputs 4 j to 4 j + 3 of a group of 32, the high ones are 16 inputs further.
#pragma once
#include <cstddef>
#include <cstdint>

namespace unspool {

constexpr int BLOCK = 32;          // outputs side by side
constexpr int GROUP = 32;          // inputs of int4 that share a scale and a zero
constexpr int GROUP_BYTES = 640;   // one group of one block
constexpr int MAX_UNIT = 4;        // blocks of a unit, at most

enum Kind : int32_t { FLOAT32, BFLOAT16, INT8, INT4 };
enum Type : int32_t { X_FLOAT32, X_BFLOAT16 };
enum Activation : int32_t { RELU, SILU, GELU, GELU_TANH };

constexpr int PIECE[] = {256, 256, 512, 1024};     // inputs of a piece, per kind
constexpr int MULTIPLE[] = {1, 2, 4, GROUP};       // inputs are filled up with zeros to a multiple, per kind

// Mirrored by `_Weight` in packed.py.
struct Weight {
    uint8_t* data;        // the stream, aligned to 64 bytes
    const float* scale;   // int8: one per output, filled up to whole blocks; otherwise null
    const float* bias;    // float32, filled up to whole blocks; or null
    int64_t outputs;
    int64_t inputs;
    int32_t kind;
    int32_t unit;         // blocks of a unit: 1, 2 or 4
};

// One query of a call of attention. Mirrored by the rows of a table in attention.py.
struct Query {
    int64_t row;      // of the tensors of the call
    int64_t slot;     // of its keys and values
    int64_t stop;     // it sees the keys at [0, stop), its own included
    int64_t base;     // slot that holds the first `shared` keys and values too
    int64_t shared;
    int64_t finite;   // 1 at first; a value that is not finite makes it 0
};

// Keys and values of one layer of a pool, contiguous. Mirrored by `_Cached` in attention.py.
struct Cached {
    void* keys;     // [slots, groups, capacity, width]
    void* values;   // [slots, groups, capacity, value width]
};

// Single queries over the slots of one pool, the same in all layers. Mirrored by `_Pass` in attention.py.
struct Pass {
    Query* queries;
    const int64_t* bundles;   // [num_bundles + 1], first queries of the bundles; the queries of one share keys
    const Cached* layers;
    int64_t num_queries, num_bundles, capacity;
};

// Attention in one layer: first the key and the value of each query are written to its slot. Mirrored by `_Attention` in
// attention.py. It reads query [rows, heads, width], key [rows, groups, width], value [rows, groups, value width], with the
// numbers of a head side by side, and sinks [heads], scores without a value, or null. It writes y [rows, heads, value width].
struct Attention {
    int64_t layer, heads, groups, width, value_width;
    int64_t query_row, query_head, key_row, key_head, value_row, value_head;   // strides, in numbers
    int64_t window;           // most keys that a query sees; 0 for all
    float scale, softcap;     // factor of the scores; they become softcap * tanh(scores / softcap), 0 for no cap
    int32_t type;             // of query, key, value and y
    int32_t stored;           // of keys and values in their slots
};

// It reads x and writes y = x / sqrt(mean of x^2 + eps) * weight, row by row. Mirrored by `_Norm` in rows.py.
struct Norm {
    const float* weight;   // [width]
    int64_t width;
    float eps;
    int32_t type;          // of x and y
    int32_t rounds;        // 1: x is normalized, rounded to its type, and then multiplied by the weight
    int32_t lanes;         // numbers of a vector in PyTorch's sums: 4 or 8
};

// It reads x and writes y = (x - mean) / sqrt(variance + eps) * weight + bias, row by row. Mirrored by `_LayerNorm` in rows.py.
struct LayerNorm {
    const float *weight, *bias;   // [width]
    int64_t width;
    float eps;
    int32_t type;   // of x and y
};

// It reads x and a factor, or null, and writes y = activation(x) * factor, row by row, rounded between. Mirrored by `_Gate`
// in gate.py.
struct Gate {
    int64_t width, x_row, factor_row;   // strides, in numbers
    int32_t type;   // of x, factor and y
    int32_t activation;
};

// It reads x, cos and sin, and writes y = x * cos + (-second half of x, first half of x) * sin over the first `rotated`
// numbers of a row; the others are copied. The numbers of a row are side by side. Mirrored by `_Rotation` in rows.py.
struct Rotation {
    int64_t sizes[2];                                                     // rows are [sizes[0], sizes[1]]
    int64_t x_strides[2], cos_strides[2], sin_strides[2], y_strides[2];   // between rows, in numbers
    int64_t width, rotated;
    int32_t type;   // of all four
};

constexpr int LONGEST_LIST = 80;   // mirrored in top_k.py

// It reads x, and writes values and ids [rows, count], the greatest numbers of each row, best first, and y = logsumexp of x,
// row by row, unless y is null. Numbers are float32.
struct TopK {
    int64_t width, stride;   // of rows of x, in numbers
    int64_t count;           // numbers to list, 1 to width and at most LONGEST_LIST
};

// It reads masks [rows, words], one bit per token, and writes -infinity to y if the bit is 0 or missing. Numbers are float32.
struct Mask {
    int64_t width, stride;   // of rows of y, in numbers
    int64_t words;
};

// It reads two tensors and writes y = x + z, row by row. Mirrored by `_Sum` in rows.py.
struct Sum {
    int64_t width;
    int32_t type;   // of all three
};

// It reads a table [count, bytes] and int64 ids [rows], and writes y [rows, bytes], rows of the table.
struct Gather {
    int64_t count, bytes;
};

// ROWS reads int64 ids, and writes the rows of a weight.
enum Operation : int32_t { LINEAR, NORM, LAYER_NORM, ROTATE, GATE, ATTEND, TOP_K, MASK, SUM, GATHER, ROWS };
constexpr int LEVEL_OPERATIONS = GATHER;   // each level has a kernel for those before GATHER; the others have one for all
constexpr int PLACES = 5, Y = 4;   // of tensors: x, up to three others, and y

// Places of a weight that a thread asks for side by side: a power of two, or 0 to leave few rows to the CPU's own prefetchers.
// Some CPUs read several streams faster, others one, and others read fastest if nothing is asked for.
extern int streams;

union Form {
    Weight weight;
    Norm norm;
    LayerNorm layer_norm;
    Rotation rotation;
    Gate gate;
    Attention attention;
    TopK top_k;
    Mask mask;
    Sum sum;
    Gather gather;
};

// One call of a kernel, which can be recorded and run again. Its head is mirrored by `_Head` in commands.py.
struct Command {
    int64_t offset[PLACES];   // of a tensor, from its base; with base 0 its address, or 0 for none
    int64_t rows;
    int32_t base[PLACES];
    int32_t operation;
    int32_t type;             // LINEAR: of x, residual and y
    Form form;
};

// The tensors and the form of one call of a kernel. The tensors are contiguous if the form has no strides.
struct Call {
    const Form& form;
    void* at[PLACES];
    const Pass* pass;   // ATTEND
    int64_t rows;
    int32_t type, threads;

    template <class T> T* tensor(int place) const { return static_cast<T*>(at[place]); }
};

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to; }
static inline int64_t blocks_of(const Weight& w) { return up(w.outputs, BLOCK); }
static inline int64_t padded_inputs(const Weight& w) { return up(w.inputs, MULTIPLE[w.kind]) * MULTIPLE[w.kind]; }

// The bytes of `inputs` inputs of one block.
static inline int64_t bytes_of(int kind, int64_t inputs) {
    return kind == INT4 ? inputs / GROUP * GROUP_BYTES : inputs * BLOCK * (kind == FLOAT32 ? 4 : kind == BFLOAT16 ? 2 : 1);
}

// Runs body(argument) in each thread of PyTorch's pool.
void parallel(int threads, void (*body)(void*), void* argument);

// An integer that the threads of one call count up: each takes the next piece of work.
static inline int64_t take(int64_t* next) { return __atomic_fetch_add(next, 1, __ATOMIC_RELAXED); }

// Runs body() in each thread.
template <class Body> static void in_threads(int threads, Body body) {
    parallel(threads, [](void* argument) { (*static_cast<Body*>(argument))(); }, &body);
}

// Runs body(i) for each i in [0, count), in some thread.
template <class Body> static void each(int threads, int64_t count, Body body) {
    int64_t next = 0;
    in_threads(threads, [&] {
        for (int64_t i; (i = take(&next)) < count;) body(i);
    });
}

// The kernels of one instruction set. Each returns 0, or 1 without memory.
struct Level {
    int (*kernels[LEVEL_OPERATIONS])(const Call&);
    uint8_t flip;   // int8 weights are stored with these bits inverted
};

}  // namespace unspool
