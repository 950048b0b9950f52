// Attention of single queries over keys and values in slots, for one instruction set.
//
// Each query is computed alone, and its sums have one order. So a row has the same bits in any company, with or without
// a shared prefix, for any number of threads and on any level.
#include "vectors.h"

namespace unspool::NAME {
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

// The totals of all sums. to: element i is that of sums[i].
template <int N> INLINE void totals(const Span (&sums)[N], float* to) {
#if defined(__AVX512F__)
    if constexpr (N == 16) {
        // Each step adds halves as `total` does, and joins the results of two sums in one vector, in an order that makes
        // element i of the last vector the total of sum i.
        constexpr int INTERLEAVED[8][2] = {{0, 4}, {8, 12}, {1, 5}, {9, 13}, {2, 6}, {10, 14}, {3, 7}, {11, 15}};
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

// Memory that is read next, in the order of reading. The keys and values of one head are so few that hardware prefetchers
// have hardly begun when they end.
struct Next {
    const char* at;

    explicit Next(const void* first) : at(static_cast<const char*>(first)) {}

    void ask(int64_t bytes) {
        for (const char* end = at + bytes; at < end; at += 64) __builtin_prefetch(at, 0, 2);
    }
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

// Adds the weighted values of D spans for G queries. weights: [G][stride]. to: [G][padded]. step: bytes to ask for per value.
template <int D, int G, class T>
INLINE void add_spans(const float* weights, int64_t stride, const T* values, int64_t count, int64_t width, float* to, int64_t padded,
                      int64_t at, Next& next, int64_t step) {
    Span sum[G][D];
    UNROLL for (int g = 0; g < G; g++)
        UNROLL for (int d = 0; d < D; d++) sum[g][d] = loaded(to + g * padded + at + d * SPAN);
    for (int64_t j = 0; j < count; j++) {
        next.ask(step);
        UNROLL for (int d = 0; d < D; d++) {
            Span one = loaded(values + j * width + at + d * SPAN, width - at - d * SPAN);
            UNROLL for (int g = 0; g < G; g++)
                UNROLL for (int v = 0; v < PARTS; v++) sum[g][d].part[v] += one.part[v] * same(weights[g * stride + j]);
        }
    }
    UNROLL for (int g = 0; g < G; g++)
        UNROLL for (int d = 0; d < D; d++) stored(sum[g][d], to + g * padded + at + d * SPAN);
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
static float softmax(float* scores, int64_t count, float softcap, const float* sink) {
    int64_t padded = up(count, SPAN) * SPAN;
    if (softcap > 0) cap_scores(scores, padded, softcap);
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

template <class From, class To> INLINE void copy_as(const void* from, void* to, int64_t count, float factor) {
    for (int64_t i = 0; i < count; i++) static_cast<To*>(to)[i] = number<To>(value(static_cast<const From*>(from) + i) * factor);
}

// Numbers of a type, from the index `first`.
struct Numbers {
    const void* data;
    int64_t first;
    int32_t type;
    void* at() const { return static_cast<char*>(const_cast<void*>(data)) + first * (type == X_FLOAT32 ? 4 : 2); }
};

// Copies numbers times a factor, rounded to the nearest of their new type.
static void copy(Numbers from, Numbers to, int64_t count, float factor) {
    bool is_wide = to.type == X_FLOAT32;
    if (from.type == X_FLOAT32)
        (is_wide ? copy_as<float, float> : copy_as<float, uint16_t>)(from.at(), to.at(), count, factor);
    else
        (is_wide ? copy_as<uint16_t, float> : copy_as<uint16_t, uint16_t>)(from.at(), to.at(), count, factor);
}

// The first number of a position in a slot, in numbers of this width.
INLINE int64_t place(const Call& call, int64_t slot, int64_t group, int64_t position, int64_t width) {
    return ((slot * call.form.attention.groups + group) * call.pass->capacity + position) * width;
}

// Keys or values from a position in a slot.
template <class T>
INLINE const T* rows_at(const void* data, const Call& call, int64_t slot, int64_t group, int64_t position, int64_t width) {
    return static_cast<const T*>(data) + place(call, slot, group, position, width);
}

template <class T> static bool are_finite(const void* numbers, int64_t count) {
    Span sum = {};
    for (int64_t at = 0; at < count; at += SPAN) {
        Span span = loaded(static_cast<const T*>(numbers) + at, count - at);
        UNROLL for (int v = 0; v < PARTS; v++) sum.part[v] += span.part[v] * 0.0f;   // NaN for infinity and NaN
    }
    return total(sum) == 0;
}

static void write_row(const Call& call, const Cached& cached, Query& query) {
    const Attention& form = call.form.attention;
    for (int64_t group = 0; group < form.groups; group++) {
        Numbers key = {call.at[1], query.row * form.key_row + group * form.key_head, form.type};
        Numbers value = {call.at[2], query.row * form.value_row + group * form.value_head, form.type};
        copy(key, {cached.keys, place(call, query.slot, group, query.stop - 1, form.width), form.stored}, form.width, 1);
        copy(value, {cached.values, place(call, query.slot, group, query.stop - 1, form.value_width), form.stored}, form.value_width, 1);
        if (!(form.type == X_FLOAT32 ? are_finite<float> : are_finite<uint16_t>)(value.at(), form.value_width)) query.finite = 0;
    }
}

// The first position that a query sees.
INLINE int64_t start_of(const Call& call, const Query& query) {
    int64_t window = call.form.attention.window;
    return window && query.stop > window ? query.stop - window : 0;
}

// next: the keys that this thread reads afterwards.
template <int G, class T>
static void attend_heads(const Call& call, const Cached& cached, const Query& query, int64_t group, int64_t head, float* memory,
                         int64_t longest, Next next) {
    const Attention& form = call.form.attention;
    int64_t width = form.width, value_width = form.value_width, padded = up(width, SPAN) * SPAN, value_padded = up(value_width, SPAN) * SPAN;
    float *queries = memory, *sums = queries + G * padded, *scores = sums + G * value_padded;
    memset(memory, 0, sizeof(float) * G * (padded + value_padded));
    for (int g = 0; g < G; g++)
        copy({call.at[0], query.row * form.query_row + (head + g) * form.query_head, form.type}, {queries, g * padded, X_FLOAT32}, width,
             form.scale);
    int64_t start = start_of(call, query), middle = query.shared > start ? query.shared : start;
    struct { int64_t slot, start, stop; } ranges[] = {{query.base, start, middle}, {query.slot, middle, query.stop}};
    for (auto range : ranges) {
        constexpr int J = SUMS / G;
        const T* keys = rows_at<T>(cached.keys, call, range.slot, group, 0, width);
        int64_t j = range.start;
        Next values(rows_at<T>(cached.values, call, range.slot, group, j, value_width));
        for (; j + J <= range.stop; j += J) {
            values.ask(J * value_width * sizeof(T));
            score_keys<J, G>(queries, padded, keys + j * width, width, scores + j - start, longest);
        }
        for (; j < range.stop; j++) score_keys<1, G>(queries, padded, keys + j * width, width, scores + j - start, longest);
    }
    float inverse[G];
    const float* sinks = call.tensor<float>(3);
    for (int g = 0; g < G; g++)
        inverse[g] = softmax(scores + g * longest, query.stop - start, form.softcap, sinks ? sinks + head + g : nullptr);
    for (auto range : ranges) {
        const T* values = rows_at<T>(cached.values, call, range.slot, group, range.start, value_width);
        const float* weights = scores + range.start - start;
        int64_t at = 0, count = range.stop - range.start, step = width * sizeof(T);
        for (; at + SPANS * SPAN <= value_width; at += SPANS * SPAN, step = 0)
            add_spans<SPANS, G>(weights, longest, values, count, value_width, sums, value_padded, at, next, step);
        for (; at < value_width; at += SPAN, step = 0)
            add_spans<1, G>(weights, longest, values, count, value_width, sums, value_padded, at, next, step);
    }
    for (int g = 0; g < G; g++)
        copy({sums, g * value_padded, X_FLOAT32}, {call.at[Y], (query.row * form.heads + head + g) * value_width, form.type}, value_width,
             inverse[g]);
}

template <class T>
static void attend_query(const Call& call, const Cached& cached, const Query& query, int64_t group, float* memory, int64_t longest,
                         Next next) {
    int64_t count = call.form.attention.heads / call.form.attention.groups, head = group * count, stop = head + count;
    if constexpr (MOST_HEADS == 4)
        for (; head + 4 <= stop; head += 4) attend_heads<4, T>(call, cached, query, group, head, memory, longest, next);
    for (; head + 2 <= stop; head += 2) attend_heads<2, T>(call, cached, query, group, head, memory, longest, next);
    for (; head < stop; head++) attend_heads<1, T>(call, cached, query, group, head, memory, longest, next);
}

// The first key of a query behind `known` keys that another query has just read.
template <class T> static Next keys_of(const Call& call, const Cached& cached, const Query& query, int64_t group, int64_t known) {
    int64_t start = start_of(call, query), position = start > known ? start : known;
    int64_t slot = position < query.shared ? query.base : query.slot;
    return Next(rows_at<T>(cached.keys, call, slot, group, position, call.form.attention.width));
}

// One head of keys for the queries of one bundle. later: the next task of this thread.
template <class T>
static void attend_bundle(const Call& call, const Cached& cached, int64_t task, int64_t later, float* memory, int64_t longest) {
    const Pass& pass = *call.pass;
    int64_t groups = call.form.attention.groups, group = task % groups, stop = pass.bundles[task / groups + 1];
    for (int64_t index = pass.bundles[task / groups]; index < stop; index++) {
        bool stays = index + 1 < stop;
        const Query& next = pass.queries[stays ? index + 1 : pass.bundles[later / groups]];
        attend_query<T>(call, cached, pass.queries[index], group, memory, longest,
                        keys_of<T>(call, cached, next, stays ? group : later % groups, stays ? next.shared : 0));
    }
}

constexpr int64_t WORTH_WRITERS = 1 << 16;   // numbers to write
constexpr int64_t WORTH_THREADS = 1 << 15;   // products of numbers

}  // namespace

int attend(const Call& call) {
    const Attention& form = call.form.attention;
    const Pass& pass = *call.pass;
    const Cached& cached = pass.layers[form.layer];
    int64_t keys = 0, longest = 0, widths = form.width + form.value_width;
    for (int64_t index = 0; index < pass.num_queries; index++) {
        keys += pass.queries[index].stop;
        longest = pass.queries[index].stop > longest ? pass.queries[index].stop : longest;
    }
    longest = up(longest, SPAN) * SPAN;   // whole spans
    each(pass.num_queries * form.groups * widths < WORTH_WRITERS ? 1 : call.threads, pass.num_queries,
         [&](int64_t index) { write_row(call, cached, pass.queries[index]); });
    int threads = keys * form.heads * widths < WORTH_THREADS ? 1 : call.threads;
    int64_t numbers = MOST_HEADS * (up(form.width, SPAN) * SPAN + up(form.value_width, SPAN) * SPAN + longest);
    float* memory = static_cast<float*>(malloc(sizeof(float) * numbers * threads));
    if (!memory) return 1;
    int64_t next_memory = 0, next_task = 0;
    // A task is one head of keys for the queries of one bundle, so that their shared keys stay in the cache of a core.
    in_threads(threads, [&] {
        float* own = memory + take(&next_memory) * numbers;
        int64_t tasks = pass.num_bundles * form.groups;
        for (int64_t task = take(&next_task), later; task < tasks; task = later) {
            later = take(&next_task);
            (form.stored == X_FLOAT32 ? attend_bundle<float> : attend_bundle<uint16_t>)(call, cached, task, least(later, tasks - 1),
                                                                                       own, longest);
        }
    });
    free(memory);
    return 0;
}

}  // namespace unspool::NAME
