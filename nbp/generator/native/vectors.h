// Vectors of the processor, numbers in 32 or 16 bits, and what a transformer computes without weights.
//
// GCC's vector types: the same code for AVX2 and AVX-512, whichever the compiler is told to build for (setup.py).
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace nbp {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
constexpr int BLOCK = 16;       // numbers that rows, heads and columns are filled up to

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef float Anywhere __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int Whole __attribute__((vector_size(LANES * 4)));

inline Vector load(const float* from) { return *reinterpret_cast<const Anywhere*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Anywhere*>(to) = value; }
inline Vector all(float value) { return Vector{} + value; }

// The first `count` numbers, and NaN behind them.
inline Vector load_some(const float* from, int count) {
    if (count >= LANES) return load(from);
    Vector some = all(NAN);
    for (int i = 0; i < count; i++) some[i] = from[i];
    return some;
}

// A bit for each number that a comparison is true for.
inline unsigned bits_of(Whole chosen) {
#ifdef __AVX512F__
    return _mm512_movepi32_mask((__m512i)chosen);
#else
    return _mm256_movemask_ps((__m256)chosen);
#endif
}

// Write the numbers that have a bit side by side; up to a whole vector is written. Returns how many they are.
inline int compress(Vector numbers, unsigned bits, float* to) {
#ifdef __AVX512F__
    store(to, (Vector)_mm512_maskz_compress_ps(bits, (__m512)numbers));
#else
    for (int i = 0, n = 0; i < LANES; n += bits >> i++ & 1) to[n] = numbers[i];
#endif
    return __builtin_popcount(bits);
}

inline int filled_up(int count, int to) { return (count + to - 1) / to * to; }

struct bfloat16 { uint16_t bits; };

template <class Number> constexpr int PAIR = sizeof(float) / sizeof(Number);      // numbers in 32 bits
template <class Number> constexpr int DEPTH = 1;                                  // depths are a multiple of it
template <> constexpr int DEPTH<bfloat16> = 32;

// Write `count` numbers, a multiple of BLOCK, rounded to the nearest.
inline void convert(const float* from, float* to, int count) {
    for (int i = 0; i < count && from != to; i += LANES) store(to + i, load(from + i));
}

#ifdef __AVX512BF16__
inline void convert(const float* from, bfloat16* to, int count) {
    for (int i = 0; i < count; i += 16)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i)));
}
#endif

inline void widen(const float* from, float* to, int count) { std::memcpy(to, from, count * sizeof(float)); }

inline void widen(const bfloat16* from, float* to, int count) {
    int i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= count; i += 16) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
        _mm512_storeu_si512(to + i, _mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
#endif
    for (; i < count; i++) {
        const uint32_t bits = uint32_t(from[i].bits) << 16;
        std::memcpy(to + i, &bits, sizeof bits);
    }
}

// Swap, in two rows of a square, the numbers of the upper right with those of the lower left of its parts of STEP numbers.
template <int STEP>
inline void swap_parts(Vector& upper, Vector& lower) {
    Whole above, below;
    for (int i = 0; i < LANES; i++) {
        above[i] = i & STEP ? LANES + i - STEP : i;
        below[i] = i & STEP ? LANES + i : i + STEP;
    }
    const Vector before = upper;
    upper = __builtin_shuffle(before, lower, above);
    lower = __builtin_shuffle(before, lower, below);
}

// Write a square of LANES x LANES numbers of 32 bits with rows as columns; strides are between rows.
inline void transpose(const float* from, size_t stride, float* to, size_t to_stride) {
    Vector rows[LANES];
    const auto swap_all = [&]<int STEP>() {
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & STEP)) swap_parts<STEP>(rows[i], rows[i + STEP]);
    };
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) rows[i] = load(from + i * stride);
    swap_all.template operator()<1>();
    swap_all.template operator()<2>();
    swap_all.template operator()<4>();
    if constexpr (LANES == 16) swap_all.template operator()<LANES / 2>();
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) store(to + i * to_stride, rows[i]);
}

// The same of rows x columns, both multiples of BLOCK.
inline void transpose(const float* from, size_t stride, float* to, size_t to_stride, int rows, int columns) {
    for (int i = 0; i < rows; i += LANES)
        for (int j = 0; j < columns; j += LANES)
            transpose(from + i * stride + j, stride, to + j * to_stride + i, to_stride);
}

inline float sum_of(Vector value) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += value[i];
    return sum;
}

inline float largest_of(Vector value) {
    float largest = value[0];
    for (int i = 1; i < LANES; i++) largest = value[i] > largest ? value[i] : largest;
    return largest;
}

// e^x for x <= 0, to 1e-7 of it; 0 below -87. Source: the polynomial of Cephes' expf (netlib.org/cephes).
inline Vector exponential(Vector x) {
    Whole nothing = x < -87.f;
    x = nothing ? all(-87.f) : x;
    Vector scaled = x * 1.44269504f - 0.5f;                                       // rounds to the nearest, as x <= 0
    Whole power = __builtin_convertvector(scaled, Whole);
    Vector whole = __builtin_convertvector(power, Vector);
    Vector rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Vector sum = all(1.9875691500e-4f);
    for (float factor : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        sum = sum * rest + factor;
    sum = sum * rest * rest + rest + 1.f;
    return nothing ? Vector{} : sum * (Vector)((power + 127) << 23);
}

// x * Phi(x), to 5e-7 between -12 and 12. Source: formula 7.1.26 of Abramowitz and Stegun, Handbook of Mathematical Functions.
inline Vector gelu(Vector x) {
    Vector z = x * 0.70710678f, size = z < 0.f ? -z : z;
    Vector t = 1.f / (1.f + 0.3275911f * size);
    Vector sum = all(1.061405429f);
    for (float factor : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) sum = sum * t + factor;
    Vector tail = sum * t * exponential(-(size * size));                          // of both sides
    return x * (z < 0.f ? 0.5f * tail : 1.f - 0.5f * tail);
}

// LayerNorm of a row of `width` numbers, with PyTorch's epsilon; `out` may be `x`.
template <class Number>
void layer_norm(const float* x, const float* weight, const float* bias, int width, float* scratch, Number* out) {
    Vector sum{}, squares{};
    for (int i = 0; i < width; i += LANES) sum += load(x + i);
    const float mean = sum_of(sum) / width;
    for (int i = 0; i < width; i += LANES) {
        Vector distance = load(x + i) - mean;
        squares += distance * distance;
    }
    const float scale = 1.f / std::sqrt(sum_of(squares) / width + 1e-5f);
    for (int i = 0; i < width; i += LANES)
        store(scratch + i, (load(x + i) - mean) * scale * load(weight + i) + load(bias + i));
    convert(scratch, out, width);
}

// Replace `count` scores, a multiple of BLOCK, by their e^(scale * (x - largest)) and return the sum of these.
inline float exponentials(float* scores, int count, float scale, float& top) {
    Vector largest = load(scores), sum{};
    for (int i = LANES; i < count; i += LANES) {
        Vector here = load(scores + i);
        largest = here > largest ? here : largest;
    }
    top = largest_of(largest);
    for (int i = 0; i < count; i += LANES) {
        Vector here = exponential((load(scores + i) - top) * scale);
        store(scores + i, here);
        sum += here;
    }
    return sum_of(sum);
}

}  // namespace nbp
