// Vectors of one instruction set, and numbers in them. Included by each source that is compiled once per level, in a
// namespace with the name of the level.
#pragma once
#include "kernels.h"

#include <cstdlib>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace unspool::NAME {

int linear(const Call&);
int norm(const Call&);
int layer_norm(const Call&);
int rotate(const Call&);
int gate(const Call&);
int attend(const Call&);
int top_k(const Call&);
int sum(const Call&);
int mask(const Call&);

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 64;
#elif defined(__AVX2__)
constexpr int WIDTH = 32;
#else
constexpr int WIDTH = 16;
#endif
constexpr int LANES = WIDTH / 4;
constexpr int VECS = BLOCK / LANES;   // vectors of one block

typedef float F __attribute__((vector_size(WIDTH), may_alias));
typedef int32_t I __attribute__((vector_size(WIDTH), may_alias));
typedef uint32_t U __attribute__((vector_size(WIDTH), may_alias));
typedef int16_t S __attribute__((vector_size(WIDTH), may_alias));
typedef uint16_t H __attribute__((vector_size(WIDTH / 2), may_alias));
typedef float LooseF __attribute__((vector_size(WIDTH), aligned(4), may_alias));

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE [[maybe_unused]] static inline __attribute__((always_inline))

#define PIECE_FUNCTION static __attribute__((noinline)) void   // apart, so that each has all registers

INLINE F same(float x) { return x - F{}; }   // unlike x + 0, this is x in every bit
INLINE F converted(I x) { return __builtin_convertvector(x, F); }
INLINE F low_half(U pair) { return (F)(pair << 16); }
INLINE F high_half(U pair) { return (F)(pair & 0xffff0000u); }

INLINE float wide(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float found;
    memcpy(&found, &bits, 4);
    return found;
}
INLINE F load(const float* x) { return *reinterpret_cast<const LooseF*>(x); }
INLINE F load(const uint16_t* x) {
    H half;
    memcpy(&half, x, sizeof half);
    return (F)(__builtin_convertvector(half, U) << 16);
}
INLINE float value(const float* x) { return *x; }
INLINE float value(const uint16_t* x) { return wide(*x); }

// e to the x; x is clamped to the range of finite results. Taylor series on [-log 2 / 2, log 2 / 2].
INLINE F exponential(F x) {
    x = x > 88.0f ? same(88.0f) : x;
    x = x < -87.0f ? same(-87.0f) : x;
    F moved = x * 1.44269504f + 12582912.0f, whole = moved - 12582912.0f;
    F r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    F sum = same(1.0f / 5040);
    sum = sum * r + 1.0f / 720;
    sum = sum * r + 1.0f / 120;
    sum = sum * r + 1.0f / 24;
    sum = sum * r + 1.0f / 6;
    sum = sum * r + 0.5f;
    sum = sum * r + 1.0f;
    sum = sum * r + 1.0f;
    return sum * (F)(((I)moved - 0x4b400000 + 127) << 23);
}

// The nearest bfloat16, ties to even; NaN stays NaN.
INLINE H narrow(F x) {
    U bits = (U)x, rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return __builtin_convertvector(x != x ? U{} + 0x7fc0u : rounded, H);
}
INLINE uint16_t narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(x != x ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

INLINE void store(F x, float* to) { *reinterpret_cast<LooseF*>(to) = x; }
INLINE void store(F x, uint16_t* to) {
    H half = narrow(x);
    memcpy(to, &half, sizeof half);
}

// A number as float, or as the bits of a bfloat16.
template <class To, class From> INLINE To number(From x) {
    if constexpr (sizeof(To) == sizeof(From))
        return x;
    else if constexpr (sizeof(To) == 4)
        return wide(x);
    else
        return narrow(x);
}

}  // namespace
}  // namespace unspool::NAME
