// The C interface of the library: the choice of a level, threads, packing, commands, masks. Compiled for the lowest CPU
// of its kind.
#include "kernels.h"

#include <cstring>
#include <initializer_list>

namespace unspool {

extern const Level LEVEL_avx2, LEVEL_avx512, LEVEL_avx512vnni, LEVEL_avx512bf16, LEVEL_amx, LEVEL_neon;

// Best first.
#if defined(__x86_64__)
static const Level* const LEVELS[] = {&LEVEL_amx, &LEVEL_avx512bf16, &LEVEL_avx512vnni, &LEVEL_avx512, &LEVEL_avx2};
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
    uint8_t* numbers;   // [outputs, inputs]
    uint16_t* scales;   // int4: (scale, zero) in bfloat16, [inputs / 32][outputs][2]; otherwise null
};

struct Packing {
    const Weight* weight;
    const Matrix* matrix;
    bool back;   // from the stream to the matrix
    int64_t next;
};

static uint32_t load(const void* from) {
    uint32_t word;
    memcpy(&word, from, 4);
    return word;
}

// Copies `bytes` consecutive bytes of one output, in words of 4 bytes, to or from every 32nd word of the stream.
static void copy_words(bool back, uint8_t* packed, uint8_t* plain, int64_t bytes, uint32_t flip) {
    int64_t whole = bytes / 4 * 4;
    if (back) {
        for (int64_t i = 0; i < whole; i += 4) {
            uint32_t word = load(packed + i * BLOCK) ^ flip;
            memcpy(plain + i, &word, 4);
        }
    } else {
        for (int64_t i = 0; i < whole; i += 4) {
            uint32_t word = load(plain + i) ^ flip;
            memcpy(packed + i * BLOCK, &word, 4);
        }
    }
    for (int64_t i = whole; i < bytes; i++) {
        uint8_t* place = packed + whole * BLOCK + i - whole;
        if (back)
            plain[i] = *place ^ (uint8_t)flip;
        else
            *place = plain[i] ^ (uint8_t)flip;
    }
}

// Copies one group of one output: 32 numbers to or from 16 bytes.
static void copy_group(bool back, uint8_t* packed, uint8_t* plain) {
    for (int j = 0; j < 4; j++, plain += 4, packed += 4 * BLOCK) {
        if (back) {
            uint32_t word = load(packed), low = word & 0x0f0f0f0f, high = word >> 4 & 0x0f0f0f0f;
            memcpy(plain, &low, 4);
            memcpy(plain + 16, &high, 4);
        } else {
            uint32_t word = load(plain) | load(plain + 16) << 4;
            memcpy(packed, &word, 4);
        }
    }
}

// Copies the inputs [start, start + count) of one block. Padding stays zero.
static void copy_piece(const Packing& packing, const Matrix& matrix, uint8_t* to, int64_t n0, int64_t start, int64_t count) {
    const Weight& w = *packing.weight;
    int64_t outputs = w.outputs - n0 < BLOCK ? w.outputs - n0 : BLOCK;
    int64_t rest = w.inputs - start, inputs = rest < count ? rest : count, size = w.kind == FLOAT32 ? 4 : w.kind == BFLOAT16 ? 2 : 1;
    uint32_t flip = w.kind == INT8 ? level->flip * 0x01010101u : 0;
    if (!packing.back && (outputs < BLOCK || inputs < count)) memset(to, (int)(flip & 255), bytes_of(w.kind, count));
    for (int64_t n = 0; n < outputs; n++) {
        uint8_t* plain = matrix.numbers + ((n0 + n) * w.inputs + start) * size;
        if (w.kind != INT4) {
            copy_words(packing.back, to + n * 4, plain, inputs * size, flip);
            continue;
        }
        for (int64_t group = 0; group < inputs / GROUP; group++) {
            uint8_t* packed = to + group * GROUP_BYTES + n * 4;
            uint16_t* scale = matrix.scales + ((start / GROUP + group) * w.outputs + n0 + n) * 2;
            packing.back ? memcpy(scale, packed, 4) : memcpy(packed, scale, 4);
            copy_group(packing.back, packed + 4 * BLOCK, plain + group * GROUP);
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
                copy_piece(packing, *packing.matrix, to, block * BLOCK, start, count);
        }
    }
}

// ---- commands -----------------------------------------------------------------------------------------------------

static thread_local struct { Command* commands; int64_t most, calls; } recording = {nullptr, 0, 0};

static Command made(Operation operation, std::initializer_list<const void*> inputs, void* y, int64_t rows) {
    Command command;
    memset(&command, 0, sizeof command);
    command.operation = operation;
    command.rows = rows;
    int place = 0;
    for (const void* input : inputs) command.offset[place++] = reinterpret_cast<int64_t>(input);
    command.offset[PLACES - 1] = reinterpret_cast<int64_t>(y);
    return command;
}

static int run(const Command& command, const int64_t* bases, const Pass* pass, int threads) {
    void* at[PLACES];
    for (int i = 0; i < PLACES; i++) at[i] = reinterpret_cast<void*>(bases[command.base[i]] + command.offset[i]);
    Rows rows = {at[0], at[1], at[2], at[4], command.rows, threads};
    switch (command.operation) {
        case LINEAR: return level->linear(command.weight, {at[0], at[4], at[1], command.rows, command.type, threads});
        case NORM: level->norm(command.norm, rows); break;
        case LAYER_NORM: level->layer_norm(command.layer_norm, rows); break;
        case ROTATE: level->rotate(command.rotation, rows); break;
        case GATE: level->gate(command.gate, rows); break;
        case ATTEND: {
            const Cached& cached = pass->layers[command.attention.layer];
            const float* sinks = static_cast<const float*>(at[3]);
            return level->attend({command.attention, *pass, cached, at[0], at[1], at[2], sinks, at[4], threads});
        }
    }
    return 0;
}

// Runs a command that holds addresses. Records it if this thread records its calls.
static int call(const Command& command, const Pass* pass, int threads) {
    if (recording.commands && recording.calls < recording.most) recording.commands[recording.calls] = command;
    recording.calls++;
    static const int64_t addresses[] = {0};
    return run(command, addresses, pass, threads);
}

// ---- masks of tokens ----------------------------------------------------------------------------------------------

constexpr int TOKENS = 32;                  // bits of a mask word
constexpr uint32_t FORBIDDEN = 0xff800000;  // -infinity as float32

struct Masking {
    uint32_t* scores;        // float32 [rows, vocab], with `stride` numbers from row to row
    const uint32_t* masks;   // [rows, words], one bit per token, 1 if it is allowed; missing words are 0
    int64_t rows, vocab, stride, words;
    int64_t next;
};

// Four tokens at a time; every CPU has vectors of this size.
static void mask_word(uint32_t* scores, uint32_t word) {
    using Four = uint32_t __attribute__((vector_size(16), aligned(4), may_alias));
    const Four bits = {1, 2, 4, 8}, forbidden = {FORBIDDEN, FORBIDDEN, FORBIDDEN, FORBIDDEN};
    for (int i = 0; i < TOKENS; i += 4) {
        Four* four = reinterpret_cast<Four*>(scores + i);
        const Four keep = (Four)((word >> i & bits) == bits);
        *four = (*four & keep) | (forbidden & ~keep);
    }
}

static void mask_row(uint32_t* scores, const uint32_t* mask, int64_t vocab, int64_t words) {
    int64_t whole = vocab / TOKENS < words ? vocab / TOKENS : words;
    for (int64_t w = 0; w < whole; w++, scores += TOKENS) {
        if (mask[w] == 0)
            for (int i = 0; i < TOKENS; i++) scores[i] = FORBIDDEN;
        else if (mask[w] != ~0u)
            mask_word(scores, mask[w]);
    }
    uint32_t last = whole < words ? mask[whole] : 0;
    for (int64_t i = 0; i < vocab - whole * TOKENS; i++)
        if (i >= TOKENS || !(last >> i & 1)) scores[i] = FORBIDDEN;
}

static void mask_rows(void* argument) {
    Masking& m = *static_cast<Masking*>(argument);
    for (int64_t row; (row = take(&m.next)) < m.rows;)
        mask_row(m.scores + row * m.stride, m.masks + row * m.words, m.vocab, m.words);
}

}  // namespace unspool

using namespace unspool;

#define PUBLIC extern "C" __attribute__((visibility("default")))

// Chooses the level with this name, or the best one that runs here for "". Returns its name, or null.
PUBLIC const char* unspool_choose(const char* name) {
    for (const Level* each : LEVELS)
        if (each->runs_here() && (*name ? !strcmp(name, each->name) : each->pays_here())) {
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

// Copies a matrix into the stream, or back.
PUBLIC void unspool_pack(const Weight* weight, const Matrix* matrix, int32_t back, int32_t threads) {
    Packing packing = {weight, matrix, back != 0, 0};
    parallel(threads, copy_units, &packing);
}

// Sets where the calls of this thread are recorded: at `most` commands; null for nowhere. Returns how many calls followed the
// last start, which can be more than `most`.
PUBLIC int64_t unspool_record(Command* commands, int64_t most) {
    int64_t found = recording.calls;
    recording = {commands, most, 0};
    return found;
}

PUBLIC int64_t unspool_command_bytes() { return sizeof(Command); }

// Runs recorded commands in order. bases: addresses, the first of them 0. pass: that of all calls of attention, or null.
// Returns 0, or 1 without memory.
PUBLIC int32_t unspool_run(const Command* commands, int64_t count, const int64_t* bases, const Pass* pass, int32_t threads) {
    for (int64_t i = 0; i < count; i++)
        if (run(commands[i], bases, pass, threads)) return 1;
    return 0;
}

// Computes y; returns 0, or 1 without memory.
PUBLIC int32_t unspool_linear(const Weight* weight, const void* x, void* y, const void* residual, int64_t rows, int32_t type,
                              int32_t threads) {
    Command command = made(LINEAR, {x, residual}, y, rows);
    command.type = type;
    command.weight = *weight;
    return call(command, nullptr, threads);
}

// Writes the keys and values of the queries, and computes y; returns 0, or 1 without memory.
PUBLIC int32_t unspool_attend(const Attention* attention, const Pass* pass, const void* query, const void* key,
                              const void* value, const void* sinks, void* y, int32_t threads) {
    Command command = made(ATTEND, {query, key, value, sinks}, y, pass->num_queries);
    command.attention = *attention;
    return call(command, pass, threads);
}

// Computes y, like the next three.
PUBLIC void unspool_norm(const Norm* norm, const void* x, void* y, int64_t rows, int32_t threads) {
    Command command = made(NORM, {x}, y, rows);
    command.norm = *norm;
    call(command, nullptr, threads);
}

PUBLIC void unspool_layer_norm(const LayerNorm* norm, const void* x, void* y, int64_t rows, int32_t threads) {
    Command command = made(LAYER_NORM, {x}, y, rows);
    command.layer_norm = *norm;
    call(command, nullptr, threads);
}

PUBLIC void unspool_rotate(const Rotation* rotation, const void* x, const void* cos, const void* sin, void* y, int32_t threads) {
    Command command = made(ROTATE, {x, cos, sin}, y, rotation->sizes[0] * rotation->sizes[1]);
    command.rotation = *rotation;
    call(command, nullptr, threads);
}

PUBLIC void unspool_gate(const Gate* gate, const void* x, const void* factor, void* y, int64_t rows, int32_t threads) {
    Command command = made(GATE, {x, factor}, y, rows);
    command.gate = *gate;
    call(command, nullptr, threads);
}

// Lists the `count` greatest scores of each row, and computes its logsumexp unless y is null.
PUBLIC void unspool_top_k(const float* x, float* y, float* values, int64_t* ids, int64_t rows, int64_t width,
                          int64_t stride, int64_t count, int32_t threads) {
    level->top_k({width, stride, count, values, ids}, {x, nullptr, nullptr, y, rows, threads});
}

// Reads memory that is aligned to 64 bytes, all but less than 256 KB, and returns something: a yardstick.
PUBLIC float unspool_read(const float* data, int64_t count, int32_t threads) { return level->read(data, count, threads); }

// Writes -infinity over the scores of the tokens that a mask does not allow.
PUBLIC void unspool_mask(float* scores, const uint32_t* masks, int64_t rows, int64_t vocab, int64_t stride, int64_t words,
                         int32_t threads) {
    Masking masking = {reinterpret_cast<uint32_t*>(scores), masks, rows, vocab, stride, words, 0};
    parallel(threads, mask_rows, &masking);
}
