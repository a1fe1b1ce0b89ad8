// Sixteen floats at a time, in the vectors of GCC and Clang: they become whatever the processor has.

#pragma once

#include <cstdint>
#include <cstring>

namespace dataflower {

constexpr int kLanes = 16;
using Bf16 = uint16_t;
typedef float Floats __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef uint16_t WideHalves __attribute__((vector_size(64)));

template <class V>
inline V load(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class V>
inline void store(void* to, V value) {
  std::memcpy(to, &value, sizeof value);
}

inline Floats all(float value) { return Floats{} + value; }

// Sixteen neighbours in bf16.
inline Floats widen(const Bf16* from) {
  return (Floats)(__builtin_convertvector(load<Halves>(from), Words) << 16);
}

// To the nearest, ties to even. The values are finite, or whatever they become is not.
inline void narrow(Bf16* to, Floats value) {
  Words bits = (Words)value;
  bits += 0x7fff + ((bits >> 16) & 1);
  store(to, __builtin_convertvector(bits >> 16, Halves));
}

inline float widen(Bf16 value) {
  const uint32_t bits = uint32_t(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// (a0, b0), (a1, b1), ... of the first half of two vectors, and of the last.
inline Words first_pairs(WideHalves a, WideHalves b) {
  return (Words)__builtin_shufflevector(a, b, 0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8, 40, 9, 41, 10,
                                        42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47);
}

inline Words last_pairs(WideHalves a, WideHalves b) {
  return (Words)__builtin_shufflevector(a, b, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55, 24, 56,
                                        25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63);
}

inline float rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float sum(Floats values) {
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += values[lane];
  return total;
}

// Sums of sixteen vectors at once: lane i is the sum of the lanes of vector i. The vectors are lost.
inline Floats sums(Floats* vectors) {
  for (int count = kLanes; count > 1; count /= 2) {
    for (int pair = 0; pair < count / 2; ++pair) {
      const Floats a = vectors[2 * pair], b = vectors[2 * pair + 1];
      vectors[pair] =
          __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
          __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    }
  }
  return vectors[0];
}

// e^x to one unit in the last place or two, held between e^-87 and e^88; NaN stays NaN. (Cephes' reduction and polynomial for expf.)
inline Floats exponential(Floats x) {
  x = x < -87.0f ? all(-87.0f) : x;
  x = x > 88.0f ? all(88.0f) : x;
  const Floats shift = all(12582912.0f);  // 1.5 * 2^23: its addition rounds to whole numbers
  const Floats whole = (x * 1.44269504088896341f + shift) - shift;
  const Floats r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * (Floats)((__builtin_convertvector(whole, Ints) + 127) << 23);
}

}  // namespace dataflower
