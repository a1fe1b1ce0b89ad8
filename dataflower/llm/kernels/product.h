// Products with weights as oneDNN lays them out for bf16: blocks of 64 outputs, each (inputs / 2, 64, 2), a multiple
// of 32 inputs. A decode step reads each weight once, so it is bound by memory; the block is walked in pieces that
// stay in the first cache while all rows of the batch take their turn.

#pragma once

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "math.h"

namespace dataflower {

constexpr int kBlock = 64;
constexpr int kVectors = kBlock / kLanes;
constexpr int kPairs = 64;  // of inputs, in a piece: 16 KiB
constexpr int kTogether = 4;
constexpr int kAhead = 4096;  // bytes that are asked for before they are needed

// total += the products of sixteen pairs with sixteen others, all in bf16.
inline Floats multiply(Floats total, Words a, Words b) {
#if defined(__AVX512BF16__)
  return (Floats)_mm512_dpbf16_ps((__m512)total, (__m512bh)a, (__m512bh)b);
#else
  total += (Floats)(a << 16) * (Floats)(b << 16);
  return total + (Floats)(a & 0xffff0000u) * (Floats)(b & 0xffff0000u);
#endif
}

// The same pair sixteen times.
inline Words pair_at(const Bf16* x) {
  uint32_t pair;
  std::memcpy(&pair, x, sizeof pair);
  return Words{} + pair;
}

template <int kRows, bool kAsk>
inline void piece(const Bf16* weight, const Bf16* x, int64_t stride, int64_t pairs, float* out) {
  Floats total[kRows][kVectors];
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) total[row][v] = load<Floats>(out + row * kBlock + v * kLanes);
  for (int64_t pair = 0; pair < pairs; ++pair, weight += 2 * kBlock) {
    if (kAsk)
      for (int line = 0; line < 4; ++line)
        __builtin_prefetch(reinterpret_cast<const char*>(weight) + kAhead + 64 * line, 0, 3);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Words weights = load<Words>(weight + 2 * v * kLanes);
#pragma GCC unroll 6
      for (int row = 0; row < kRows; ++row)
        total[row][v] = multiply(total[row][v], weights, pair_at(x + row * stride + 2 * pair));
    }
  }
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) store(out + row * kBlock + v * kLanes, total[row][v]);
}

// Rows of the batch one group after the other: the first to come asks memory for what is next.
template <bool kAsk>
inline int group(const Bf16* weight, const Bf16* x, int64_t stride, int64_t pairs, int rows, float* out) {
  switch (rows) {
    case 1: return piece<1, kAsk>(weight, x, stride, pairs, out), 1;
    case 2: return piece<2, kAsk>(weight, x, stride, pairs, out), 2;
    case 3: return piece<3, kAsk>(weight, x, stride, pairs, out), 3;
    default: return piece<kTogether, kAsk>(weight, x, stride, pairs, out), kTogether;
  }
}

// out (rows, 64) = x (rows, inputs) times one block of a weight.
inline void product(const Bf16* block, const Bf16* x, int64_t inputs, int rows, float* out) {
  std::memset(out, 0, sizeof(float) * rows * kBlock);
  const int64_t pairs = inputs / 2;
  for (int64_t first = 0; first < pairs; first += kPairs) {
    const int64_t count = pairs - first < kPairs ? pairs - first : kPairs;
    const Bf16* weight = block + first * 2 * kBlock;
    const Bf16* from = x + 2 * first;
    for (int row = group<true>(weight, from, inputs, count, rows, out); row < rows;)
      row += group<false>(weight, from + row * inputs, inputs, count, rows - row, out + row * kBlock);
  }
}

}  // namespace dataflower
