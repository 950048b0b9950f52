// The C interface of the library: the choice of a level, threads, packing, commands, the yardstick. Compiled for the lowest
// CPU of its kind.
#include "kernels.h"

#include <cstring>
#include <initializer_list>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace unspool {

// ---- levels -------------------------------------------------------------------------------------------------------

#define LEVEL(name) namespace name { extern const Level level; }
LEVEL(avx2) LEVEL(avx512) LEVEL(avx512vnni) LEVEL(avx512bf16) LEVEL(amx) LEVEL(neon)
#undef LEVEL

struct Choice {
    const char* name;
    const Level* level;
    bool (*fits)(bool by_name);   // this CPU; a level that is chosen by its name does not have to be fast
};

#if defined(__x86_64__)
#define HAS __builtin_cpu_supports

static bool has_avx512(bool) { return HAS("avx512f") && HAS("avx512bw") && HAS("avx512vl") && HAS("avx512dq") && HAS("fma"); }
static bool has_vnni(bool) { return has_avx512(true) && HAS("avx512vnni"); }

// Intel's CPUs multiply pairs of bfloat16 at half the speed of AMD's: with 16 rows, converted numbers are 1.6 times faster.
static bool has_pairs(bool by_name) { return has_vnni(true) && HAS("avx512bf16") && (by_name || __builtin_cpu_is("amd")); }

// Linux grants each process the state of the tiles when it asks.
static bool has_tiles(bool) {
    unsigned a, b, c, d;
    constexpr unsigned WANTED = 1u << 22 | 1u << 24 | 1u << 25;   // bfloat16, tiles, int8
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;              // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return has_vnni(true) && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & WANTED) == WANTED &&
           !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
}

static const Choice CHOICES[] = {   // best first
    {"amx", &amx::level, has_tiles},
    {"avx512bf16", &avx512bf16::level, has_pairs},
    {"avx512vnni", &avx512vnni::level, has_vnni},
    {"avx512", &avx512::level, has_avx512},
    {"avx2", &avx2::level, [](bool) -> bool { return HAS("avx2") && HAS("fma"); }},
};
#elif defined(__aarch64__)
static bool has_dot_products(bool) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;   // every ARM Mac
#endif
}

static const Choice CHOICES[] = {{"neon", &neon::level, has_dot_products}};
#else
#error "there are kernels for x86-64 and for 64-bit ARM only"
#endif

static const Level* level = nullptr;
int streams = 1;

// ---- threads ------------------------------------------------------------------------------------------------------

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

// Copies 1 to 4 bytes to the stream, or back.
static inline void copy(bool back, uint8_t* packed, uint8_t* plain, size_t bytes, uint32_t flip) {
    uint32_t word = 0;
    memcpy(&word, back ? packed : plain, bytes);
    word ^= flip;
    memcpy(back ? plain : packed, &word, bytes);
}

// Copies consecutive bytes of one output, in words of 4 bytes, to or from every 32nd word of the stream.
static inline void copy_words(bool back, uint8_t* packed, uint8_t* plain, int64_t bytes, uint32_t flip) {
    int64_t whole = bytes / 4 * 4;
    for (int64_t i = 0; i < whole; i += 4) copy(back, packed + i * BLOCK, plain + i, 4, flip);
    if (whole < bytes) copy(back, packed + whole * BLOCK, plain + whole, bytes - whole, flip);
}

// Copies one group of one output: 32 numbers to or from 16 bytes.
static void copy_group(bool back, uint8_t* packed, uint8_t* plain) {
    uint8_t both[GROUP / 2];
    if (!back)
        for (int i = 0; i < GROUP / 2; i++) both[i] = (uint8_t)(plain[i] | plain[i + GROUP / 2] << 4);
    copy_words(back, packed, both, GROUP / 2, 0);
    if (back)
        for (int i = 0; i < GROUP / 2; i++) plain[i] = both[i] & 15, plain[i + GROUP / 2] = both[i] >> 4;
}

// Copies the inputs [start, start + count) of one block. Padding stays zero.
static void copy_piece(const Weight& w, const Matrix& matrix, bool back, uint8_t* to, int64_t n0, int64_t start, int64_t count) {
    int64_t outputs = least(w.outputs - n0, BLOCK), inputs = least(w.inputs - start, count), size = bytes_of(w.kind, 4) / (4 * BLOCK);
    uint32_t flip = w.kind == INT8 ? level->flip * 0x01010101u : 0;
    if (!back && (outputs < BLOCK || inputs < count)) memset(to, (int)(flip & 255), bytes_of(w.kind, count));
    for (int64_t n = 0; n < outputs; n++) {
        if (w.kind != INT4) {
            copy_words(back, to + n * 4, matrix.numbers + ((n0 + n) * w.inputs + start) * size, inputs * size, flip);
            continue;
        }
        for (int64_t at = start; at < start + inputs; at += GROUP) {
            uint8_t* packed = to + bytes_of(INT4, at - start) + n * 4;
            copy(back, packed, reinterpret_cast<uint8_t*>(matrix.scales + (at / GROUP * w.outputs + n0 + n) * 2), 4, 0);
            copy_group(back, packed + 4 * BLOCK, matrix.numbers + (n0 + n) * w.inputs + at);
        }
    }
}

static void copy_unit(const Weight& w, const Matrix& matrix, bool back, int64_t unit) {
    int64_t padded = padded_inputs(w), first = unit * w.unit, stop = least(first + w.unit, blocks_of(w));
    uint8_t* to = w.data + first * bytes_of(w.kind, padded);
    for (int64_t start = 0; start < padded; start += PIECE[w.kind]) {
        int64_t count = least(padded - start, PIECE[w.kind]);
        for (int64_t block = first; block < stop; block++, to += bytes_of(w.kind, count))
            copy_piece(w, matrix, back, to, block * BLOCK, start, count);
    }
}

// ---- rows by their ids --------------------------------------------------------------------------------------------

// Returns whether all ids of a call are in [0, count).
static bool are_rows(const Call& call, const int64_t* ids, int64_t count) {
    for (int64_t i = 0; i < call.rows; i++)
        if (ids[i] < 0 || ids[i] >= count) return false;
    return true;
}

// Both return 2 if an id names no row.
static int gather(const Call& call) {
    const int64_t *ids = call.tensor<int64_t>(1), bytes = call.form.gather.bytes;
    if (!are_rows(call, ids, call.form.gather.count)) return 2;
    for (int64_t i = 0; i < call.rows; i++) memcpy(call.tensor<uint8_t>(Y) + i * bytes, call.tensor<uint8_t>(0) + ids[i] * bytes, bytes);
    return 0;
}

// Of a float32 or bfloat16 weight.
static int weight_rows(const Call& call) {
    const Weight& w = call.form.weight;
    const int64_t* ids = call.tensor<int64_t>(0);
    if (!are_rows(call, ids, w.outputs)) return 2;
    int64_t padded = padded_inputs(w), size = bytes_of(w.kind, 1) / BLOCK;
    each((int)least(call.threads, call.rows), call.rows, [&](int64_t i) {
        int64_t block = ids[i] / BLOCK, first = block / w.unit * w.unit, blocks = least(w.unit, blocks_of(w) - first);
        uint8_t* piece = w.data + first * bytes_of(w.kind, padded) + ids[i] % BLOCK * 4;
        for (int64_t start = 0; start < w.inputs; start += PIECE[w.kind]) {
            int64_t bytes = bytes_of(w.kind, least(padded - start, PIECE[w.kind])), inputs = least(w.inputs - start, PIECE[w.kind]);
            uint8_t* to = call.tensor<uint8_t>(Y) + (i * w.inputs + start) * size;
            copy_words(true, piece + (block - first) * bytes, to, inputs * size, 0);
            piece += blocks * bytes;
        }
    });
    return 0;
}

// ---- commands -----------------------------------------------------------------------------------------------------

static thread_local struct { Command* commands; int64_t most, calls; } recording = {nullptr, 0, 0};

static int run(const Command& command, const int64_t* bases, const Pass* pass, int threads) {
    Call call = {command.form, {}, pass, command.rows, command.type, threads};
    for (int i = 0; i < PLACES; i++) call.at[i] = reinterpret_cast<void*>(bases[command.base[i]] + command.offset[i]);
    if (command.operation < LEVEL_OPERATIONS) return level->kernels[command.operation](call);
    return command.operation == GATHER ? gather(call) : weight_rows(call);
}

// Runs a command that holds addresses. Records it if this thread records its calls.
template <class F>
static int call(Operation operation, const F& form, std::initializer_list<const void*> inputs, void* y, int64_t rows, int threads,
                int type = 0, const Pass* pass = nullptr) {
    static const int64_t addresses[] = {0};
    Command command = {};
    int place = 0;
    for (const void* input : inputs) command.offset[place++] = reinterpret_cast<int64_t>(input);
    command.offset[Y] = reinterpret_cast<int64_t>(y);
    command.rows = rows, command.operation = operation, command.type = type;
    memcpy(&command.form, &form, sizeof form);
    if (recording.commands && recording.calls < recording.most) recording.commands[recording.calls] = command;
    recording.calls++;
    return run(command, addresses, pass, threads);
}

}  // namespace unspool

using namespace unspool;

#define PUBLIC extern "C" __attribute__((visibility("default")))

// Chooses the level with this name, or the best one that runs here for "". Returns its name, or null.
PUBLIC const char* unspool_choose(const char* name) {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    for (const Choice& choice : CHOICES)
        if ((!*name || !strcmp(name, choice.name)) && choice.fits(*name)) {
            level = choice.level;
            return choice.name;
        }
    return nullptr;
}

// Sets in how many streams each thread reads a weight, 1 or a power of two. No bit of a result depends on this.
PUBLIC void unspool_set_streams(int32_t count) { streams = count; }

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
    each(threads, up(blocks_of(*weight), weight->unit), [&](int64_t unit) { copy_unit(*weight, *matrix, back, unit); });
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
// Returns 0, or the error of the first call that fails: 1 without memory, 2 if an id names no row.
PUBLIC int32_t unspool_run(const Command* commands, int64_t count, const int64_t* bases, const Pass* pass, int32_t threads) {
    for (int64_t i = 0; i < count; i++)
        if (int error = run(commands[i], bases, pass, threads)) return error;
    return 0;
}

// Computes y; returns 0, or 1 without memory. The next ones are alike.
PUBLIC int32_t unspool_linear(const Weight* weight, const void* x, void* y, const void* residual, int64_t rows, int32_t type,
                              int32_t threads) {
    return call(LINEAR, *weight, {x, residual}, y, rows, threads, type);
}

PUBLIC int32_t unspool_attend(const Attention* attention, const Pass* pass, const void* query, const void* key,
                              const void* value, const void* sinks, void* y, int32_t threads) {
    return call(ATTEND, *attention, {query, key, value, sinks}, y, pass->num_queries, threads, 0, pass);
}

PUBLIC void unspool_norm(const Norm* norm, const void* x, void* y, int64_t rows, int32_t threads) {
    call(NORM, *norm, {x}, y, rows, threads);
}

PUBLIC void unspool_layer_norm(const LayerNorm* norm, const void* x, void* y, int64_t rows, int32_t threads) {
    call(LAYER_NORM, *norm, {x}, y, rows, threads);
}

PUBLIC void unspool_rotate(const Rotation* rotation, const void* x, const void* cos, const void* sin, void* y, int32_t threads) {
    call(ROTATE, *rotation, {x, cos, sin}, y, rotation->sizes[0] * rotation->sizes[1], threads);
}

PUBLIC void unspool_gate(const Gate* gate, const void* x, const void* factor, void* y, int64_t rows, int32_t threads) {
    call(GATE, *gate, {x, factor}, y, rows, threads);
}

PUBLIC void unspool_sum(const Sum* sum, const void* x, const void* z, void* y, int64_t rows, int32_t threads) {
    call(SUM, *sum, {x, z}, y, rows, threads);
}

PUBLIC int32_t unspool_gather(const void* table, const int64_t* ids, void* y, int64_t rows, int64_t count, int64_t bytes) {
    return call(GATHER, Gather{count, bytes}, {table, ids}, y, rows, 1);
}

PUBLIC int32_t unspool_rows(const Weight* weight, const int64_t* ids, void* y, int64_t rows, int32_t threads) {
    return call(ROWS, *weight, {ids}, y, rows, threads);
}

PUBLIC void unspool_top_k(const float* x, float* y, float* values, int64_t* ids, int64_t rows, int64_t width, int64_t stride,
                          int64_t count, int32_t threads) {
    call(TOP_K, TopK{width, stride, count}, {x, values, ids}, y, rows, threads);
}

PUBLIC void unspool_mask(float* scores, const uint32_t* masks, int64_t rows, int64_t vocab, int64_t stride, int64_t words,
                         int32_t threads) {
    call(MASK, Mask{vocab, stride, words}, {masks}, scores, rows, threads);
}

// Reads memory that is aligned to 64 bytes, all but less than 256 KB, and returns something: a yardstick. Each thread reads
// as many streams as for a weight.
PUBLIC float unspool_read(const float* data, int64_t count, int32_t threads) {
    typedef float Four __attribute__((vector_size(16)));
    constexpr int64_t PORTION = 1 << 16, LINE = 16;
    float found = 0;
    each(threads, count / PORTION, [&](int64_t portion) {
        Four sum[4] = {};
        int parts = streams ? streams : 1;
        for (int64_t i = 0; i < PORTION / parts; i += LINE)
            for (int part = 0; part < parts; part++) {
                const float* at = data + portion * PORTION + part * (PORTION / parts) + i;
                if (streams) __builtin_prefetch(at + 3072, 0, 2);
                for (int j = 0; j < 4; j++) sum[j] += reinterpret_cast<const Four*>(at)[j];
            }
        Four all = sum[0] + sum[1] + sum[2] + sum[3];
        __atomic_store(&found, (float*)&all, __ATOMIC_RELAXED);   // used, so that nothing is left out
    });
    return found;
}
