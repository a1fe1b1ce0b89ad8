// Products with weights as oneDNN lays them out for bf16: blocks of 64 outputs, each (inputs / 2, 64, 2), a multiple
// of 32 inputs. A decode step reads each weight once, so it is bound by memory; the block is walked in pieces that
// stay in the first cache while all rows of the batch take their turn.

#pragma once

#include "math.h"

namespace dataflower {

constexpr int kBlock = 64;
constexpr int kVectors = kBlock / kLanes;
constexpr int kPairs = 64;  // of inputs, in a piece: 16 KiB
constexpr int kTogether = 4;
constexpr int kAhead = 4096;  // bytes that are asked for before they are needed

template <int kRows>
inline void piece(const Bf16* weight, const float* x, int64_t stride, int64_t pairs, float* out) {
  Floats total[kRows][kVectors];
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) total[row][v] = load<Floats>(out + row * kBlock + v * kLanes);
  for (int64_t pair = 0; pair < pairs; ++pair, weight += 2 * kBlock) {
    for (int line = 0; line < 4; ++line)
      __builtin_prefetch(reinterpret_cast<const char*>(weight) + kAhead + 64 * line, 0, 3);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Words both = load<Words>(weight + 2 * v * kLanes);
      const Floats first = (Floats)(both << 16), second = (Floats)(both & 0xffff0000u);
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) {
        total[row][v] += first * x[row * stride + 2 * pair];
        total[row][v] += second * x[row * stride + 2 * pair + 1];
      }
    }
  }
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) store(out + row * kBlock + v * kLanes, total[row][v]);
}

// out (rows, 64) = x (rows, inputs) times one block of a weight.
inline void product(const Bf16* block, const float* x, int64_t inputs, int rows, float* out) {
  std::memset(out, 0, sizeof(float) * rows * kBlock);
  const int64_t pairs = inputs / 2;
  for (int64_t first = 0; first < pairs; first += kPairs) {
    const int64_t count = pairs - first < kPairs ? pairs - first : kPairs;
    const Bf16* weight = block + first * 2 * kBlock;
    int row = 0;
    for (; row + kTogether <= rows; row += kTogether)
      piece<kTogether>(weight, x + row * inputs + 2 * first, inputs, count, out + row * kBlock);
    const float* rest = x + row * inputs + 2 * first;
    if (rows - row == 1) piece<1>(weight, rest, inputs, count, out + row * kBlock);
    if (rows - row == 2) piece<2>(weight, rest, inputs, count, out + row * kBlock);
    if (rows - row == 3) piece<3>(weight, rest, inputs, count, out + row * kBlock);
  }
}

}  // namespace dataflower
