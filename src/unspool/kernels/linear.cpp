// Products of few rows with a packed weight, for one instruction set: compiled once per level (see build.py).
#include "amx.h"

namespace unspool::NAME {
namespace {

struct Work {
    const Weight& weight;
    const Call& call;
    Input in;
    int64_t first;   // row of this pass
    int rows;        // of this pass
    int64_t next_unit;
};

// Writes one row of one block: the sums times the scales, plus the bias and the residual. X: float, or uint16_t for bfloat16.
template <class X> static void finish(const Work& work, const float* total, int64_t block, int64_t row) {
    const Weight& w = work.weight;
    int64_t n = block * BLOCK, place = (work.first + row) * w.outputs + n;
    size_t bytes = sizeof(X) * least(w.outputs - n, BLOCK);
    alignas(64) X residual[BLOCK] = {};
    alignas(64) X y[BLOCK];
    UNROLL for (int v = 0; v < BLOCK; v += LANES) {
        F found = load(total + v);
        if (w.kind == INT8) found *= load(w.scale + n + v) * work.in.step[row];
        store(w.bias ? found + load(w.bias + n + v) : found, y + v);
    }
    if (const X* given = work.call.tensor<X>(1)) {
        memcpy(residual, given + place, bytes);
        asm("" : "+m"(y));   // round before the addition, as PyTorch does: no fused multiply-add
        UNROLL for (int v = 0; v < BLOCK; v += LANES) store(load(y + v) + load(residual + v), y + v);
    }
    X* to = work.call.tensor<X>(Y) + place;
    if (bytes == sizeof y)
        memcpy(to, y, sizeof y);
    else
        memcpy(to, y, bytes);
}

// Computes one unit, and returns the next one of this thread.
template <class Kind> static int64_t run_unit(Work& work, int64_t unit) {
    constexpr int MOST_HELD = Kind::MOST_ROWS + Kind::ROWS;
    const Weight& w = work.weight;
    const Input& in = work.in;
    alignas(64) float total[MAX_UNIT][MOST_HELD][BLOCK];
    int64_t first = unit * w.unit, padded = padded_inputs(w), next = 0;
    int blocks = (int)least(blocks_of(w) - first, w.unit), at_once = in.size * Kind::AT_ONCE, turns = (int)up(work.rows, at_once);
    int parts = streams ? streams : 1, step = !streams && work.rows <= Kind::FEW_ROWS ? 0 : 128 / turns;
    for (int block = 0; block < blocks; block++) memset(total[block], 0, sizeof(float) * in.held * BLOCK);
    const uint8_t* weight = w.data + first * bytes_of(w.kind, padded);
    for (int64_t start = 0; start < padded; start += PIECE[w.kind]) {
        int inputs = (int)least(padded - start, PIECE[w.kind]);
        int64_t bytes = bytes_of(w.kind, inputs);
        for (int block = 0; block < blocks; block++, weight += bytes) {
            const uint8_t* ahead = weight + bytes;
            if (start + inputs == padded && block == blocks - 1) {
                next = take(&work.next_unit);   // just in time to ask for its first piece
                ahead = w.data + next * w.unit * bytes_of(w.kind, padded);
            }
            for (int turn = 0, row = 0; turn < turns; turn++, row += at_once) {
                int rows = (int)least(at_once, work.rows - row);
                const int32_t* x = in.x + (row * in.length + start * Kind::side(rows, in.size)) / Kind::SHARE;
                const int32_t* facts = in.facts + (start / Kind::SPACING * in.held + row) * Kind::FACTS;
                Ahead share = {reinterpret_cast<const char*>(ahead) + bytes * turn / turns, step, bytes / turns / parts / 64 * 64, parts - 1};
                Part part = {weight, x, facts, total[block][row], inputs, in.size, in.held, in.length, share};
                with_constant<Kind::MOST>(Kind::parts(rows, in.size), [&](auto count) { Kind::template piece<count>(part); });
            }
        }
    }
    for (int block = 0; block < blocks; block++)
        for (int row = 0; row < work.rows; row++)
            (work.call.type == X_FLOAT32 ? finish<float> : finish<uint16_t>)(work, total[block][row], first + block, row);
    return next;
}

constexpr int64_t LINE = 16;                     // numbers of 64 bytes
constexpr int64_t WORTH_A_THREAD = 1 << 12;      // numbers of x
constexpr int64_t WORTH_THREADS = 1 << 14;       // products of numbers

template <class Kind> static int run(const Call& call) {
    const Weight& w = call.form.weight;
    int rows = (int)up(call.rows, up(call.rows, Kind::MOST_ROWS));   // equal passes: a small last one would read the weight alone
    Input in = {w.inputs, up(w.inputs, Kind::MULTIPLE) * Kind::MULTIPLE, 0, 0, call.tensor<int32_t>(0), nullptr, nullptr};
    in.size = (int)up(rows, up(rows, Kind::ROWS));
    in.held = (int)up(rows, in.size) * in.size;
    // One row of float32 has its form already.
    bool is_ready = call.rows == 1 && call.type == X_FLOAT32 && Kind::SHARE == 1 && in.length == w.inputs;
    alignas(64) float near[1 << 13];
    float* memory = near;
    if (!is_ready) {
        int64_t steps = up(in.held, LINE) * LINE, facts = up(up(in.length, Kind::SPACING) * in.held * Kind::FACTS, LINE) * LINE;
        int64_t numbers = steps + facts + up(in.held * in.length / Kind::SHARE, LINE) * LINE;
        if (numbers > 1 << 13) memory = static_cast<float*>(aligned_alloc(64, sizeof(float) * numbers));
        if (!memory) return 1;
        in.step = memory;
        in.facts = reinterpret_cast<int32_t*>(memory + steps);
        in.x = in.facts + facts;
    }
    for (int64_t first = 0; first < call.rows; first += rows) {
        Work work = {w, call, in, first, (int)least(rows, call.rows - first), 0};
        auto prepare = [&](int64_t tile) {
            int64_t row = tile * in.size, place = (first + row) * w.inputs;
            int count = (int)least(in.size, work.rows - row);
            if (call.type == X_BFLOAT16)
                Kind::prepare(call.tensor<const uint16_t>(0) + place, in, row, count);
            else if constexpr (!Kind::IS_BFLOAT16)
                Kind::prepare(call.tensor<const float>(0) + place, in, row, count);
        };
        if (!is_ready) each(work.rows * w.inputs < WORTH_A_THREAD ? 1 : call.threads, up(work.rows, in.size), prepare);
        in_threads(w.outputs * w.inputs * work.rows < WORTH_THREADS ? 1 : call.threads, [&] {
            Kind::begin(in);
            for (int64_t unit = take(&work.next_unit); unit < up(blocks_of(w), w.unit);) unit = run_unit<Kind>(work, unit);
            Kind::end();
        });
    }
    if (memory != near) free(memory);
    return 0;
}

}  // namespace

int linear(const Call& call) {
    if (!call.rows) return 0;
    switch (call.form.weight.kind) {
        case FLOAT32: return run<Float32>(call);
#if defined(__AMX_TILE__)
        case BFLOAT16: return call.type == X_BFLOAT16 ? run<Tiles<BFLOAT16>>(call) : run<Bfloat16>(call);
        case INT8: return call.rows >= 4 ? run<Tiles<INT8>>(call) : run<Int8>(call);   // few rows are faster without tiles
#else
        case BFLOAT16: return call.type == X_BFLOAT16 ? run<Pairs>(call) : run<Bfloat16>(call);
        case INT8: return run<Int8>(call);
#endif
        default: return run<Int4>(call);
    }
}

extern const Level level;
const Level level = {{linear, norm, layer_norm, rotate, gate, attend, top_k, mask, sum}, FLIP};

}  // namespace unspool::NAME
