// RMSNorm, LayerNorm, rotary embeddings, activations, top-k and logsumexp of a decode step, for one instruction set.
//
// RMSNorm and rotary embeddings have the bits of PyTorch's operators in turn: the same order of sums, and the same
// roundings. So the source is compiled without fused multiply-adds, and all levels give the same bits. Each row is
// computed alone.
#include "vectors.h"

namespace unspool {
namespace {

constexpr int64_t WORTH_THREADS = 1 << 15;   // numbers

template <class T> INLINE F loaded(const T* x, int64_t count) {
    if (count >= LANES) return load(x);
    T some[LANES] = {};
    for (int64_t i = 0; i < count; i++) some[i] = x[i];
    return load(some);
}

template <class T> INLINE void stored(F x, T* to, int64_t count) {
    if (count >= LANES) return store(x, to);
    T some[LANES];
    store(x, some);
    for (int64_t i = 0; i < count; i++) to[i] = some[i];
}

// The nearest number of type T.
template <class T> INLINE F rounded(F x) {
    T some[LANES];
    store(x, some);
    return load(some);
}

// The sum of squares in the order of PyTorch's sum over neighbors, for its vectors of L numbers: four vectors side by
// side, in partial sums of up to 4 levels; then the numbers behind the last whole vector; then the lanes in turn.
template <int L, class X> static float sum_of_squares(const X* x, int64_t count) {
    constexpr int VECTORS = 4 * L / LANES > 0 ? 4 * L / LANES : 1, LEVELS = 4;
    static_assert(VECTORS * LANES == 4 * L, "whole vectors");
    F sum[LEVELS][VECTORS] = {};
    int64_t groups = count / (4 * L), i = 0;
    int bits = 0;
    while (((int64_t)1 << bits) < groups) bits++;
    int power = bits / LEVELS > 4 ? bits / LEVELS : 4;
    int64_t step = (int64_t)1 << power;
    auto add = [&](int64_t stop) __attribute__((always_inline)) {
        for (; i < stop; i++)
            UNROLL for (int v = 0; v < VECTORS; v++) {
                F some = load(x + i * 4 * L + v * LANES);
                sum[0][v] += some * some;
            }
    };
    while (i + step <= groups) {
        add(i + step);
        for (int level = 1; level < LEVELS; level++) {
            for (int v = 0; v < VECTORS; v++) sum[level][v] += sum[level - 1][v], sum[level - 1][v] = F{};
            if (i & ((step - 1) << (level * power))) break;
        }
    }
    add(groups);
    for (int level = 1; level < LEVELS; level++)
        for (int v = 0; v < VECTORS; v++) sum[0][v] += sum[level][v];
    float lane[4][L], total = 0;
    memcpy(lane, sum[0], sizeof lane);
    int64_t at = groups * 4 * L;
    for (; at + L <= count; at += L)
        for (int j = 0; j < L; j++) lane[0][j] += value(x + at + j) * value(x + at + j);
    for (int k = 1; k < 4; k++)
        for (int j = 0; j < L; j++) lane[0][j] += lane[k][j];
    for (; at < count; at++) total += value(x + at) * value(x + at);
    for (int j = 0; j < L; j++) total += lane[0][j];
    return total;
}

template <class X> static void norm_row(const Norm& norm, const Rows& rows, int64_t row) {
    int64_t width = norm.width;
    const X* x = static_cast<const X*>(rows.x) + row * width;
    X* y = static_cast<X*>(rows.y) + row * width;
    float sum = norm.lanes == 8 ? sum_of_squares<8>(x, width) : sum_of_squares<4>(x, width);
    float scale = 1.0f / __builtin_sqrtf(sum / (float)width + norm.eps);
    for (int64_t i = 0; i < width; i += LANES) {
        F normed = loaded(x + i, width - i) * scale;
        if (norm.rounds) normed = rounded<X>(normed);
        stored(normed * loaded(norm.weight + i, width - i), y + i, width - i);
    }
}

template <class X> static void rotate_row(const Rotation& form, const Rows& rows, int64_t row) {
    int64_t outer = row / form.sizes[1], inner = row % form.sizes[1], half = form.rotated / 2;
    auto of = [&](const void* data, const int64_t* strides) __attribute__((always_inline)) {
        return static_cast<const X*>(data) + outer * strides[0] + inner * strides[1];
    };
    const X *x = of(rows.x, form.x_strides), *cos = of(rows.a, form.cos_strides), *sin = of(rows.b, form.sin_strides);
    X* y = const_cast<X*>(of(rows.y, form.y_strides));
    for (int64_t i = 0; i < half; i += LANES) {
        int64_t j = i + half, count = half - i;
        F first = loaded(x + i, count), second = loaded(x + j, count);
        F a = rounded<X>(first * loaded(cos + i, count)) + rounded<X>(-second * loaded(sin + i, count));
        F b = rounded<X>(second * loaded(cos + j, count)) + rounded<X>(first * loaded(sin + j, count));
        stored(a, y + i, count);
        stored(b, y + j, count);
    }
    for (int64_t i = form.rotated; i < form.width; i++) y[i] = x[i];
}

// Calls use(vector, its number in its block, place of the block) for a row in blocks; the last block is filled up.
template <class X, class Use> INLINE void in_blocks(const X* x, int64_t width, float fill, Use use) {
    int64_t whole = width / BLOCK * BLOCK;
    float last[BLOCK];
    for (int64_t i = 0; i < BLOCK; i++) last[i] = whole + i < width ? value(x + whole + i) : fill;
    for (int64_t i = 0; i < whole; i += BLOCK)
        UNROLL for (int v = 0; v < VECS; v++) use(load(x + i + v * LANES), v, i);
    UNROLL for (int v = 0; v < VECS; v++) use(load(last + v * LANES), v, whole);
}

static float total_of(const F (&sum)[VECS]) {
    float lanes[BLOCK];
    memcpy(lanes, sum, sizeof lanes);
    for (int half = BLOCK / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

template <class X> static void layer_norm_row(const LayerNorm& norm, const Rows& rows, int64_t row) {
    int64_t width = norm.width;
    const X* x = static_cast<const X*>(rows.x) + row * width;
    X* y = static_cast<X*>(rows.y) + row * width;
    F sum[VECS] = {}, squares[VECS] = {};
    in_blocks(x, width, 0, [&](F some, int v, int64_t) __attribute__((always_inline)) { sum[v] += some; });
    float mean = total_of(sum) / (float)width;
    in_blocks(x, width, mean, [&](F some, int v, int64_t) __attribute__((always_inline)) {
        squares[v] += (some - mean) * (some - mean);
    });
    float scale = 1.0f / __builtin_sqrtf(total_of(squares) / (float)width + norm.eps);
    for (int64_t i = 0; i < width; i += LANES) {
        int64_t count = width - i;
        F normed = (loaded(x + i, count) - mean) * scale;
        stored(normed * loaded(norm.weight + i, count) + loaded(norm.bias + i, count), y + i, count);
    }
}

// Half of erfc(|x| / sqrt 2), to 1e-7: Abramowitz and Stegun, 7.1.26.
INLINE F half_erfc(F x) {
    F z = (x < 0.0f ? -x : x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * z);
    F sum = same(1.061405429f);
    sum = sum * t - 1.453152027f;
    sum = sum * t + 1.421413741f;
    sum = sum * t - 0.284496736f;
    sum = sum * t + 0.254829592f;
    return 0.5f * sum * t * exponential(-z * z);
}

INLINE F activated(F x, int activation) {
    switch (activation) {
        case RELU: return x < 0.0f ? F{} : x;
        case SILU: return x / (1.0f + exponential(-x));
        case GELU: {
            F tail = half_erfc(x);
            return x * (x < 0.0f ? tail : 1.0f - tail);
        }
        default: return x / (1.0f + exponential(-1.59576912f * (x + 0.044715f * x * x * x)));
    }
}

template <class X> static void gate_row(const Gate& gate, const Rows& rows, int64_t row) {
    const X *x = static_cast<const X*>(rows.x) + row * gate.x_row, *factor = static_cast<const X*>(rows.a) + row * gate.factor_row;
    X* y = static_cast<X*>(rows.y) + row * gate.width;
    for (int64_t i = 0; i < gate.width; i += LANES) {
        F found = activated(loaded(x + i, gate.width - i), gate.activation);
        if (rows.a) found = rounded<X>(found) * loaded(factor + i, gate.width - i);
        stored(found, y + i, gate.width - i);
    }
}

INLINE bool any(I found) {
    int64_t parts[WIDTH / 8], all = 0;
    memcpy(parts, &found, sizeof parts);
    for (int64_t part : parts) all |= part;
    return all != 0;
}

// Lists the greatest scores of a row, best first, and of equal scores the lowest id first. NaN is never listed. If the
// list is longer than the scores above -inf, other ids follow, with -inf.
static void list_best(const float* x, int64_t width, int64_t count, float* to_values, int64_t* to_ids) {
    const float forbidden = -__builtin_inff();
    float values[LONGEST_LIST];   // not in place: the lists of two threads can share a cache line
    int64_t ids[LONGEST_LIST], listed = 0;
    F least = same(forbidden);   // the last listed score, once the list is full
    I found = {};
    auto add = [&](float score, int64_t id) {
        int64_t at = listed < count ? listed++ : count - 1;
        for (; at && values[at - 1] < score; at--) values[at] = values[at - 1], ids[at] = ids[at - 1];
        values[at] = score;
        ids[at] = id;
        if (listed == count) least = same(values[count - 1]);
    };
    in_blocks(x, width, forbidden, [&](F some, int v, int64_t start) __attribute__((always_inline)) {
        found |= (I)(some > least);
        if (v < VECS - 1 || !any(found)) return;
        found = I{};
        for (int64_t i = start; i < start + BLOCK && i < width; i++)
            if (x[i] > least[0]) add(x[i], i);
    });
    for (int64_t i = 0; listed < count; i++)
        if (!(x[i] > forbidden)) add(forbidden, i);
    memcpy(to_values, values, count * sizeof *values);
    memcpy(to_ids, ids, count * sizeof *ids);
}

// The logsumexp of a row; -inf if all scores are, NaN if one is. Lanes are summed in one order on all levels.
static float log_norm_of(const float* x, int64_t width, float greatest) {
    if (greatest - greatest != 0) {   // -inf or +inf
        for (int64_t i = 0; i < width; i++)
            if (x[i] != x[i]) return x[i];
        return greatest;
    }
    constexpr int64_t STRETCH = 64 * BLOCK;
    F total[VECS] = {}, sum[VECS] = {};
    in_blocks(x, width, -__builtin_inff(), [&](F some, int v, int64_t start) __attribute__((always_inline)) {
        sum[v] += exponential(some - greatest);
        if (start % STRETCH == STRETCH - BLOCK) total[v] += sum[v], sum[v] = F{};
    });
    double all = 0;
    for (int v = 0; v < VECS; v++) total[v] += sum[v];
    for (int v = 0; v < VECS; v++)
        for (int j = 0; j < LANES; j++) all += total[v][j];
    return (float)(greatest + __builtin_log(all));
}

static void top_k_row(const TopK& form, const Rows& rows, int64_t row) {
    const float* x = static_cast<const float*>(rows.x) + row * form.stride;
    float* values = form.values + row * form.count;
    list_best(x, form.width, form.count, values, form.ids + row * form.count);
    if (rows.y) static_cast<float*>(rows.y)[row] = log_norm_of(x, form.width, values[0]);
}

template <class Form> struct Work {
    const Form* form;
    const Rows* rows;
    void (*row)(const Form&, const Rows&, int64_t);
    int64_t next;
};

template <class Form> static void run_rows(void* argument) {
    auto& work = *static_cast<Work<Form>*>(argument);
    for (int64_t row; (row = take(&work.next)) < work.rows->rows;) work.row(*work.form, *work.rows, row);
}

template <class Form> static void run(const Form& form, const Rows& rows, void (*row)(const Form&, const Rows&, int64_t)) {
    Work<Form> work = {&form, &rows, row, 0};
    parallel(rows.rows * form.width < WORTH_THREADS ? 1 : rows.threads, run_rows<Form>, &work);
}

}  // namespace

void NORM_OF(NAME)(const Norm& norm, const Rows& rows) {
    run(norm, rows, norm.type == X_FLOAT32 ? norm_row<float> : norm_row<uint16_t>);
}

void LAYER_NORM_OF(NAME)(const LayerNorm& norm, const Rows& rows) {
    run(norm, rows, norm.type == X_FLOAT32 ? layer_norm_row<float> : layer_norm_row<uint16_t>);
}

void GATE_OF(NAME)(const Gate& gate, const Rows& rows) {
    run(gate, rows, gate.type == X_FLOAT32 ? gate_row<float> : gate_row<uint16_t>);
}

void ROTATE_OF(NAME)(const Rotation& rotation, const Rows& rows) {
    run(rotation, rows, rotation.type == X_FLOAT32 ? rotate_row<float> : rotate_row<uint16_t>);
}

void TOP_K_OF(NAME)(const TopK& form, const Rows& rows) { run(form, rows, top_k_row); }

}  // namespace unspool
