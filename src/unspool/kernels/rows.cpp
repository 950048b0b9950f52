// RMSNorm, LayerNorm, rotary embeddings, activations and logsumexp of a decode step, for one instruction set.
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

// Calls use(vector, number of the vector in its block) for a row in blocks; the last block is filled up.
template <class X, class Use> INLINE void in_blocks(const X* x, int64_t width, float fill, Use use) {
    int64_t whole = width / BLOCK * BLOCK;
    float last[BLOCK];
    for (int64_t i = 0; i < BLOCK; i++) last[i] = whole + i < width ? value(x + whole + i) : fill;
    for (int64_t i = 0; i < whole; i += BLOCK)
        UNROLL for (int v = 0; v < VECS; v++) use(load(x + i + v * LANES), v);
    UNROLL for (int v = 0; v < VECS; v++) use(load(last + v * LANES), v);
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
    in_blocks(x, width, 0, [&](F some, int v) __attribute__((always_inline)) { sum[v] += some; });
    float mean = total_of(sum) / (float)width;
    in_blocks(x, width, mean, [&](F some, int v) __attribute__((always_inline)) { squares[v] += (some - mean) * (some - mean); });
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

// The first place of a number in a row; 0 if the row lacks it.
static int64_t place_of(float number, const float* x, int64_t width) {
    int64_t i = 0;
    for (F wanted = same(number); i + BLOCK <= width; i += BLOCK) {
        I found = {};
        UNROLL for (int v = 0; v < VECS; v++) found |= (I)(load(x + i + v * LANES) == wanted);
        if (any(found)) break;
    }
    for (; i < width; i++)
        if (x[i] == number) return i;
    return 0;
}

// The logsumexp of a row; -inf if all scores are, NaN if one is. Lanes are summed in one order on all levels.
// most: gets the greatest score that is a number.
static float log_norm_of(const float* x, int64_t width, float& most) {
    constexpr int64_t STRETCH = 64 * BLOCK;
    float last[BLOCK], lanes[BLOCK], flaw = 0;
    int64_t whole = width / BLOCK * BLOCK;
    for (int64_t i = 0; i < BLOCK; i++) last[i] = i < width - whole ? x[whole + i] : -__builtin_inff();
    auto each = [&](int64_t start, int64_t stop, auto use) __attribute__((always_inline)) {
        for (int64_t i = start; i < stop; i += BLOCK)
            UNROLL for (int v = 0; v < VECS; v++) use(load((i < whole ? x + i : last) + v * LANES), v);
    };
    F greatest[VECS], odd[VECS] = {};
    for (F& some : greatest) some = same(-__builtin_inff());
    each(0, width, [&](F a, int v) __attribute__((always_inline)) {
        greatest[v] = a > greatest[v] ? a : greatest[v];
        odd[v] = a != a ? a : odd[v];
    });
    most = -__builtin_inff();
    for (int v = 0; v < VECS; v++)
        for (int j = 0; j < LANES; j++) most = greatest[v][j] > most ? greatest[v][j] : most, flaw += odd[v][j];
    if (flaw != flaw || most - most != 0) return flaw + most;   // NaN, or no finite score
    F total[VECS] = {};
    for (int64_t start = 0; start < width; start += STRETCH) {
        F sum[VECS] = {};
        each(start, start + STRETCH < width ? start + STRETCH : width,
             [&](F a, int v) __attribute__((always_inline)) { sum[v] += exponential(a - most); });
        for (int v = 0; v < VECS; v++) total[v] += sum[v];
    }
    memcpy(lanes, total, sizeof lanes);
    double all = 0;
    for (float lane : lanes) all += lane;
    return (float)(most + __builtin_log(all));
}

static void log_norm_row(const LogNorm& form, const Rows& rows, int64_t row) {
    const float* x = static_cast<const float*>(rows.x) + row * form.stride;
    static_cast<float*>(rows.y)[row] = log_norm_of(x, form.width, form.greatest[row]);
    form.ids[row] = place_of(form.greatest[row], x, form.width);
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

void LOG_NORM_OF(NAME)(const LogNorm& form, const Rows& rows) { run(form, rows, log_norm_row); }

}  // namespace unspool
