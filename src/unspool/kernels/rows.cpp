// RMSNorm, LayerNorm, rotary embeddings, activations, sums, top-k, logsumexp and masks of rows, for one instruction set.
//
// RMSNorm and rotary embeddings have the bits of PyTorch's operators in turn: the same order of sums, and the same
// roundings. So the source is compiled without fused multiply-adds, and all levels give the same bits. Each row is
// computed alone.
#include "vectors.h"

namespace unspool::NAME {
namespace {

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
    constexpr int LEVELS = 4, WIDE = 4 * L;
    float sum[LEVELS][WIDE] = {}, total = 0;
    int64_t groups = count / WIDE, i = 0;
    int bits = 0;
    while (((int64_t)1 << bits) < groups) bits++;
    int power = bits / LEVELS > 4 ? bits / LEVELS : 4;
    while (i < groups) {
        int64_t step = (int64_t)1 << power, stop = i + step < groups ? i + step : groups;
        bool is_whole = i + step <= groups;
        for (; i < stop; i++)
            for (int j = 0; j < WIDE; j++) sum[0][j] += value(x + i * WIDE + j) * value(x + i * WIDE + j);
        for (int level = 1; is_whole && level < LEVELS; level++) {
            for (int j = 0; j < WIDE; j++) sum[level][j] += sum[level - 1][j], sum[level - 1][j] = 0;
            if (i & ((step - 1) << (level * power))) break;
        }
    }
    for (int level = 1; level < LEVELS; level++)
        for (int j = 0; j < WIDE; j++) sum[0][j] += sum[level][j];
    int64_t at = groups * WIDE;
    for (; at + L <= count; at += L)
        for (int j = 0; j < L; j++) sum[0][j] += value(x + at + j) * value(x + at + j);
    for (int j = L; j < WIDE; j++) sum[0][j % L] += sum[0][j];
    for (; at < count; at++) total += value(x + at) * value(x + at);
    for (int j = 0; j < L; j++) total += sum[0][j];
    return total;
}

template <class X> static void norm_row(const Call& call, int64_t row) {
    const Norm& norm = call.form.norm;
    const X* x = call.tensor<X>(0) + row * norm.width;
    X* y = call.tensor<X>(Y) + row * norm.width;
    float sum = norm.lanes == 8 ? sum_of_squares<8>(x, norm.width) : sum_of_squares<4>(x, norm.width);
    float scale = 1.0f / __builtin_sqrtf(sum / (float)norm.width + norm.eps);
    for (int64_t i = 0; i < norm.width; i += LANES) {
        int64_t count = norm.width - i;
        F normed = loaded(x + i, count) * scale;
        if (norm.rounds) normed = rounded<X>(normed);
        stored(normed * loaded(norm.weight + i, count), y + i, count);
    }
}

template <class X> static void rotate_row(const Call& call, int64_t row) {
    const Rotation& form = call.form.rotation;
    int64_t outer = row / form.sizes[1], inner = row % form.sizes[1], half = form.rotated / 2;
    auto of = [&](int place, const int64_t* strides) __attribute__((always_inline)) {
        return call.tensor<X>(place) + outer * strides[0] + inner * strides[1];
    };
    const X *x = of(0, form.x_strides), *cos = of(1, form.cos_strides), *sin = of(2, form.sin_strides);
    X* y = of(Y, form.y_strides);
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
    for (int64_t i = 0; i < whole; i += BLOCK)
        UNROLL for (int v = 0; v < VECS; v++) use(load(x + i + v * LANES), v, i);
    if (whole == width) return;
    float last[BLOCK];
    for (int64_t i = 0; i < BLOCK; i++) last[i] = whole + i < width ? value(x + whole + i) : fill;
    UNROLL for (int v = 0; v < VECS; v++) use(load(last + v * LANES), v, whole);
}

static float total_of(const F (&sum)[VECS]) {
    float lanes[BLOCK];
    memcpy(lanes, sum, sizeof lanes);
    for (int half = BLOCK / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

template <class X> static void layer_norm_row(const Call& call, int64_t row) {
    const LayerNorm& norm = call.form.layer_norm;
    const X* x = call.tensor<X>(0) + row * norm.width;
    X* y = call.tensor<X>(Y) + row * norm.width;
    F sum[VECS] = {}, squares[VECS] = {};
    in_blocks(x, norm.width, 0, [&](F some, int v, int64_t) __attribute__((always_inline)) { sum[v] += some; });
    float mean = total_of(sum) / (float)norm.width;
    in_blocks(x, norm.width, mean, [&](F some, int v, int64_t) __attribute__((always_inline)) {
        squares[v] += (some - mean) * (some - mean);
    });
    float scale = 1.0f / __builtin_sqrtf(total_of(squares) / (float)norm.width + norm.eps);
    for (int64_t i = 0; i < norm.width; i += LANES) {
        int64_t count = norm.width - i;
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

template <class X> static void gate_row(const Call& call, int64_t row) {
    const Gate& gate = call.form.gate;
    const X *x = call.tensor<X>(0) + row * gate.x_row, *factor = call.tensor<X>(1) + row * gate.factor_row;
    X* y = call.tensor<X>(Y) + row * gate.width;
    for (int64_t i = 0; i < gate.width; i += LANES) {
        int64_t count = gate.width - i;
        F found = activated(loaded(x + i, count), gate.activation);
        if (call.at[1]) found = rounded<X>(found) * loaded(factor + i, count);
        stored(found, y + i, count);
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

template <class X> static void sum_row(const Call& call, int64_t row) {
    int64_t width = call.form.sum.width;
    const X *x = call.tensor<X>(0) + row * width, *z = call.tensor<X>(1) + row * width;
    X* y = call.tensor<X>(Y) + row * width;
    for (int64_t i = 0; i < width; i += LANES)
        stored(loaded(x + i, width - i) + loaded(z + i, width - i), y + i, width - i);
}

static void top_k_row(const Call& call, int64_t row) {
    const TopK& form = call.form.top_k;
    const float* x = call.tensor<float>(0) + row * form.stride;
    float* values = call.tensor<float>(1) + row * form.count;
    list_best(x, form.width, form.count, values, call.tensor<int64_t>(2) + row * form.count);
    if (float* y = call.tensor<float>(Y)) y[row] = log_norm_of(x, form.width, values[0]);
}

static void mask_row(const Call& call, int64_t row) {
    const Mask& form = call.form.mask;
    const uint32_t* words = call.tensor<uint32_t>(0) + row * form.words;
    float* y = call.tensor<float>(Y) + row * form.stride;
    for (int64_t i = 0; i < form.width; i += BLOCK, y += BLOCK) {
        uint32_t word = i / BLOCK < form.words ? words[i / BLOCK] : 0;
        if (word == ~0u) continue;
        auto forbid = [&](int count) __attribute__((always_inline)) {
            for (int j = 0; j < count; j++) y[j] = word & 1u << j ? y[j] : -__builtin_inff();
        };
        if (i + BLOCK <= form.width)
            forbid(BLOCK);   // a constant: the compiler makes vectors
        else
            forbid((int)(form.width - i));
    }
}

constexpr int64_t WORTH_THREADS = 1 << 15;   // numbers

static int each_row(const Call& call, int64_t width, void (*row)(const Call&, int64_t)) {
    each(call.rows * width < WORTH_THREADS ? 1 : call.threads, call.rows, [&](int64_t index) { row(call, index); });
    return 0;
}

}  // namespace

#define BY_TYPE(form, function) each_row(call, form.width, form.type == X_FLOAT32 ? function<float> : function<uint16_t>)

int norm(const Call& call) { return BY_TYPE(call.form.norm, norm_row); }
int layer_norm(const Call& call) { return BY_TYPE(call.form.layer_norm, layer_norm_row); }
int rotate(const Call& call) { return BY_TYPE(call.form.rotation, rotate_row); }
int gate(const Call& call) { return BY_TYPE(call.form.gate, gate_row); }
int sum(const Call& call) { return BY_TYPE(call.form.sum, sum_row); }
int top_k(const Call& call) { return each_row(call, call.form.top_k.width, top_k_row); }
int mask(const Call& call) { return each_row(call, call.form.mask.width, mask_row); }

}  // namespace unspool::NAME
