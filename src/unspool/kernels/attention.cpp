// Attention of single queries over keys and values in slots, for one instruction set.
//
// Each query is computed alone, and its sums have one order. So a row has the same bits in any company, with or without
// a shared prefix, for any number of threads and on any level.
#include "vectors.h"

namespace unspool {
namespace {

constexpr int SPAN = 16;            // numbers that are summed side by side
constexpr int PARTS = SPAN / LANES; // vectors of a span

#if defined(__AVX512F__)
constexpr int MOST_HEADS = 4, SUMS = 16, SPANS = 4;   // heads, sums and spans that fit the registers
#else
constexpr int MOST_HEADS = 2, SUMS = 4, SPANS = 2;
#endif

struct Span {
    F part[PARTS];
};

template <class T> INLINE Span loaded(const T* x) {
    Span found;
    UNROLL for (int v = 0; v < PARTS; v++) found.part[v] = load(x + v * LANES);
    return found;
}

// The first `count` numbers of a span, at least one; the others are 0.
template <class T> INLINE Span loaded(const T* x, int64_t count) {
    if (count >= SPAN) return loaded(x);
    T some[SPAN] = {};
    for (int64_t i = 0; i < count; i++) some[i] = x[i];
    return loaded(some);
}

INLINE void stored(const Span& span, float* to) {
    UNROLL for (int v = 0; v < PARTS; v++) store(span.part[v], to + v * LANES);
}

// Adds the halves, then the halves of the result, and so on.
INLINE float total(const Span& span) {
    typedef float Four __attribute__((vector_size(16)));
    Four four[4];
    static_assert(sizeof four == sizeof span, "16 numbers");
    memcpy(four, &span, sizeof four);
    Four sum = (four[0] + four[2]) + (four[1] + four[3]);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

// The order in which sums are joined, so that element i of the result is the total of sum i.
constexpr int INTERLEAVED[8][2] = {{0, 4}, {8, 12}, {1, 5}, {9, 13}, {2, 6}, {10, 14}, {3, 7}, {11, 15}};

// The totals of all sums. to: element i is that of sums[i].
template <int N> INLINE void totals(const Span (&sums)[N], float* to) {
#if defined(__AVX512F__)
    if constexpr (N == 16) {
        // Each step adds halves as `total` does, and joins what is left of two sums in one vector.
        __m512 eight[8], four[4], two[2];
        UNROLL for (int i = 0; i < 8; i++) {
            __m512 a = (__m512)sums[INTERLEAVED[i][0]].part[0], b = (__m512)sums[INTERLEAVED[i][1]].part[0];
            eight[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
        }
        UNROLL for (int i = 0; i < 4; i++) {
            __m512 a = eight[2 * i], b = eight[2 * i + 1];
            four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
        }
        UNROLL for (int i = 0; i < 2; i++) {
            __m512 a = four[2 * i], b = four[2 * i + 1];
            two[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
        }
        _mm512_storeu_ps(to, _mm512_add_ps(_mm512_shuffle_ps(two[0], two[1], 0x88), _mm512_shuffle_ps(two[0], two[1], 0xdd)));
        return;
    }
#endif
    UNROLL for (int i = 0; i < N; i++) to[i] = total(sums[i]);
}

// Keys or values that follow each other in one slot.
template <class T> struct Range {
    const T* first;
    int64_t count;
};

// The products of J keys with G queries, [G][padded width]. scores: [G][stride].
template <int J, int G, class T>
INLINE void score_keys(const float* queries, int64_t padded, const T* keys, int64_t width, float* scores, int64_t stride) {
    Span sum[G * J] = {};
    for (int64_t at = 0; at < width; at += SPAN) {
        Span query[G];
        UNROLL for (int g = 0; g < G; g++) query[g] = loaded(queries + g * padded + at);
        UNROLL for (int j = 0; j < J; j++) {
            Span key = loaded(keys + j * width + at, width - at);
            UNROLL for (int g = 0; g < G; g++)
                UNROLL for (int v = 0; v < PARTS; v++) sum[g * J + j].part[v] += key.part[v] * query[g].part[v];
        }
    }
    float found[G * J];
    totals(sum, found);
    UNROLL for (int g = 0; g < G; g++) memcpy(scores + g * stride, found + g * J, sizeof(float) * J);
}

template <int G, class T>
static void score(const float* queries, int64_t padded, Range<T> keys, int64_t width, float* scores, int64_t stride) {
    constexpr int J = SUMS / G;
    int64_t j = 0;
    for (; j + J <= keys.count; j += J)
        score_keys<J, G>(queries, padded, keys.first + j * width, width, scores + j, stride);
    for (; j < keys.count; j++) score_keys<1, G>(queries, padded, keys.first + j * width, width, scores + j, stride);
}

// Adds the weighted values of D spans for G queries. to: [G][padded].
template <int D, int G, class T>
INLINE void add_spans(const float* weights, int64_t stride, Range<T> values, int64_t width, int64_t at, float* to, int64_t padded) {
    Span sum[G][D];
    UNROLL for (int g = 0; g < G; g++)
        UNROLL for (int d = 0; d < D; d++) sum[g][d] = loaded(to + g * padded + at + d * SPAN);
    const T* value = values.first + at;
    for (int64_t j = 0; j < values.count; j++, value += width) {
        UNROLL for (int d = 0; d < D; d++) {
            Span one = loaded(value + d * SPAN, width - at - d * SPAN);
            UNROLL for (int g = 0; g < G; g++)
                UNROLL for (int v = 0; v < PARTS; v++) sum[g][d].part[v] += one.part[v] * same(weights[g * stride + j]);
        }
    }
    UNROLL for (int g = 0; g < G; g++)
        UNROLL for (int d = 0; d < D; d++) stored(sum[g][d], to + g * padded + at + d * SPAN);
}

template <int G, class T>
static void add_values(const float* weights, int64_t stride, Range<T> values, int64_t width, float* to, int64_t padded) {
    int64_t at = 0;
    for (; at + SPANS * SPAN <= width; at += SPANS * SPAN)
        add_spans<SPANS, G>(weights, stride, values, width, at, to, padded);
    for (; at < width; at += SPAN) add_spans<1, G>(weights, stride, values, width, at, to, padded);
}

// e^(score - largest) in place. scores: up to a multiple of SPAN, filled up with -infinity. Returns their sum.
static float exponentials(float* scores, int64_t count, float largest) {
    Span sum = {};
    for (int64_t at = 0; at < count; at += SPAN) {
        Span span = loaded(scores + at);
        UNROLL for (int v = 0; v < PARTS; v++) {
            F found = exponential(span.part[v] - largest);
            // The exponential of -infinity is a small number.
            span.part[v] = span.part[v] == -__builtin_inff() ? F{} : found;
            sum.part[v] += span.part[v];
        }
        stored(span, scores + at);
    }
    return total(sum);
}

// cap * tanh(score / cap) in place.
static void cap_scores(float* scores, int64_t count, float cap) {
    for (int64_t at = 0; at < count; at += SPAN) {
        Span span = loaded(scores + at);
        UNROLL for (int v = 0; v < PARTS; v++)
            span.part[v] = cap - 2.0f * cap / (1.0f + exponential(span.part[v] * (2.0f / cap)));
        stored(span, scores + at);
    }
}

// Turns the scores of one query into e^(score - largest), and returns the inverse of their sum. The scores are filled up
// to a multiple of SPAN. sink: a score without a value; null for none.
static float softmax(float* scores, int64_t count, const AttentionCall& call, const float* sink) {
    int64_t padded = up(count, SPAN) * SPAN;
    if (call.softcap > 0) cap_scores(scores, padded, call.softcap);
    for (int64_t j = count; j < padded; j++) scores[j] = -__builtin_inff();
    F most = same(sink ? *sink : -__builtin_inff());
    for (int64_t at = 0; at < padded; at += LANES) {
        F some = *reinterpret_cast<const LooseF*>(scores + at);
        most = some > most ? some : most;
    }
    float largest = most[0];
    for (int v = 1; v < LANES; v++) largest = most[v] > largest ? most[v] : largest;
    float sum = exponentials(scores, padded, largest);
    if (sink) sum += exponential(same(*sink - largest))[0];
    return 1.0f / sum;
}

struct AttentionWork {
    const AttentionCall* call;
    int64_t longest;   // keys of one query, at most, filled up to whole spans
    int64_t next_query, next_task;
    int failed;
};

template <class X, class T> static void write_row(const AttentionCall& call, const Query& query) {
    int64_t position = query.stop - 1;
    for (int64_t head = 0; head < call.groups; head++) {
        int64_t place = (query.slot * call.groups + head) * call.capacity + position;
        const X* key = static_cast<const X*>(call.key) + query.row * call.key_row + head * call.key_head;
        const X* value_ = static_cast<const X*>(call.value) + query.row * call.value_row + head * call.value_head;
        T* keys = static_cast<T*>(call.keys) + place * call.width;
        T* values = static_cast<T*>(call.values) + place * call.value_width;
        for (int64_t i = 0; i < call.width; i++) keys[i] = number<T>(key[i]);
        for (int64_t i = 0; i < call.value_width; i++) values[i] = number<T>(value_[i]);
    }
}

template <class T> static Range<T> range_of(const AttentionCall& call, const void* data, int64_t slot, int64_t head, int64_t width,
                                            int64_t start, int64_t stop) {
    const T* first = static_cast<const T*>(data) + ((slot * call.groups + head) * call.capacity + start) * width;
    return {first, stop > start ? stop - start : 0};
}

template <int G, class X, class T>
static void attend_heads(const AttentionCall& call, const Query& query, int64_t group, int64_t head, float* memory, int64_t longest) {
    int64_t padded = up(call.width, SPAN) * SPAN, value_padded = up(call.value_width, SPAN) * SPAN;
    float *queries = memory, *sums = queries + G * padded, *scores = sums + G * value_padded;
    memset(memory, 0, sizeof(float) * G * (padded + value_padded));
    for (int g = 0; g < G; g++) {
        const X* from = static_cast<const X*>(call.query) + query.row * call.query_row + (head + g) * call.query_head;
        for (int64_t i = 0; i < call.width; i++) queries[g * padded + i] = value(from + i) * call.scale;
    }
    int64_t start = call.window && query.stop > call.window ? query.stop - call.window : 0;
    int64_t middle = query.shared > start ? query.shared : start, shared = middle - start;
    Range<T> shared_keys = range_of<T>(call, call.keys, query.base, group, call.width, start, middle);
    Range<T> own_keys = range_of<T>(call, call.keys, query.slot, group, call.width, middle, query.stop);
    Range<T> shared_values = range_of<T>(call, call.values, query.base, group, call.value_width, start, middle);
    Range<T> own_values = range_of<T>(call, call.values, query.slot, group, call.value_width, middle, query.stop);
    score<G>(queries, padded, shared_keys, call.width, scores, longest);
    score<G>(queries, padded, own_keys, call.width, scores + shared, longest);
    float inverse[G];
    for (int g = 0; g < G; g++)
        inverse[g] = softmax(scores + g * longest, query.stop - start, call, call.sinks ? call.sinks + head + g : nullptr);
    add_values<G>(scores, longest, shared_values, call.value_width, sums, value_padded);
    add_values<G>(scores + shared, longest, own_values, call.value_width, sums, value_padded);
    for (int g = 0; g < G; g++) {
        X* to = static_cast<X*>(call.y) + (query.row * call.heads + head + g) * call.value_width;
        for (int64_t i = 0; i < call.value_width; i++) to[i] = number<X>(sums[g * value_padded + i] * inverse[g]);
    }
}

template <class X, class T> static void attend_query(const AttentionCall& call, const Query& query, int64_t group, float* memory,
                                                     int64_t longest) {
    int64_t count = call.heads / call.groups, head = group * count, stop = head + count;
    if constexpr (MOST_HEADS == 4)
        for (; head + 4 <= stop; head += 4) attend_heads<4, X, T>(call, query, group, head, memory, longest);
    for (; head + 2 <= stop; head += 2) attend_heads<2, X, T>(call, query, group, head, memory, longest);
    for (; head < stop; head++) attend_heads<1, X, T>(call, query, group, head, memory, longest);
}

// Calls the function for the type of the inputs and that of the keys and values.
#define BY_TYPES(call, FUNCTION, ...)                                                                          \
    ((call).type == X_FLOAT32 ? ((call).stored == X_FLOAT32 ? FUNCTION<float, float>(__VA_ARGS__)              \
                                                            : FUNCTION<float, uint16_t>(__VA_ARGS__))          \
                              : ((call).stored == X_FLOAT32 ? FUNCTION<uint16_t, float>(__VA_ARGS__)           \
                                                            : FUNCTION<uint16_t, uint16_t>(__VA_ARGS__)))

static void write_rows(void* argument) {
    AttentionWork& work = *static_cast<AttentionWork*>(argument);
    const AttentionCall& call = *work.call;
    for (int64_t index; (index = take(&work.next_query)) < call.num_queries;)
        BY_TYPES(call, write_row, call, call.queries[index]);
}

// A task is one head of keys for the queries of one group: what they share stays in the cache of a core.
static void attend_tasks(void* argument) {
    AttentionWork& work = *static_cast<AttentionWork*>(argument);
    const AttentionCall& call = *work.call;
    alignas(64) float near[1 << 13];
    size_t numbers = MOST_HEADS * (up(call.width, SPAN) * SPAN + up(call.value_width, SPAN) * SPAN + work.longest);
    float* memory = numbers <= sizeof near / sizeof(float) ? near : static_cast<float*>(malloc(numbers * sizeof(float)));
    if (!memory) {
        __atomic_store_n(&work.failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (int64_t task; (task = take(&work.next_task)) < call.num_bundles * call.groups;) {
        int64_t bundle = task / call.groups;
        for (int64_t index = call.bundles[bundle]; index < call.bundles[bundle + 1]; index++)
            BY_TYPES(call, attend_query, call, call.queries[index], task % call.groups, memory, work.longest);
    }
    if (memory != near) free(memory);
}

constexpr int64_t WORTH_WRITERS = 1 << 16;   // numbers to write
constexpr int64_t WORTH_THREADS = 1 << 15;   // products of numbers

}  // namespace

int ATTEND_OF(NAME)(const AttentionCall& call) {
    AttentionWork work = {&call, 0, 0, 0, 0};
    int64_t keys = 0, widths = call.width + call.value_width;
    for (int64_t index = 0; index < call.num_queries; index++) {
        keys += call.queries[index].stop;
        if (call.queries[index].stop > work.longest) work.longest = call.queries[index].stop;
    }
    work.longest = up(work.longest, SPAN) * SPAN;
    parallel(call.num_queries * call.groups * widths < WORTH_WRITERS ? 1 : call.threads, write_rows, &work);
    parallel(keys * call.heads * widths < WORTH_THREADS ? 1 : call.threads, attend_tasks, &work);
    return work.failed;
}

}  // namespace unspool
