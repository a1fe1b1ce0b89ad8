// A step with prompts in it: many rows, some of them neighbours in one sequence. Part of decode.cpp.
//
// Here products are bound by arithmetic: six rows at a time keep their sums in registers while a block of the weight,
// in pieces that stay in the first cache, goes by. Attention takes the queries of a stretch of a prompt together,
// block of keys by block of keys with a running maximum (as FlashAttention, Dao et al. 2022, does), and lays keys and
// values out like weights first, so that the same product works on them.

#pragma once

namespace dataflower {
namespace {

constexpr int kTall = 6;      // rows whose sums are in registers together
constexpr int kTile = 72;     // rows of an item of a product, at most
constexpr int kDeep = 160;    // pairs of inputs, in a piece, at most
constexpr int kQueries = 64;  // of a prompt, in an item of the attention
enum WidePhase {
  kNormQkv,
  kWideProject,
  kTurn,
  kPack,
  kLook,
  kShrinkOut,
  kWideMix,
  kNormGate,
  kWideGate,
  kShrinkDown,
  kWideMerge,
  kWidePhases
};

template <int kRows>
inline void tall_piece(const Bf16* weight, const Bf16* x, int64_t stride, int64_t pairs, float* out) {
  Floats total[kRows][kVectors];
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) total[row][v] = load<Floats>(out + row * kBlock + v * kLanes);
  for (int64_t pair = 0; pair < pairs; ++pair, weight += 2 * kBlock) {
    Words weights[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) weights[v] = load<Words>(weight + 2 * v * kLanes);
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row) {
      const Words same = pair_at(x + row * stride + 2 * pair);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) total[row][v] = multiply(total[row][v], weights[v], same);
    }
  }
  for (int row = 0; row < kRows; ++row)
    for (int v = 0; v < kVectors; ++v) store(out + row * kBlock + v * kLanes, total[row][v]);
}

// out (rows, 64) += x (rows, inputs) times one block of a weight.
inline void tall_product(const Bf16* block, const Bf16* x, int64_t inputs, int64_t rows, float* out) {
  const int64_t pairs = inputs / 2, pieces = (pairs + kDeep - 1) / kDeep, deep = (pairs + pieces - 1) / pieces;
  for (int64_t first = 0; first < pairs; first += deep) {
    const int64_t count = std::min<int64_t>(deep, pairs - first);
    const Bf16* weight = block + first * 2 * kBlock;
    int64_t row = 0;
    for (; row + kTall <= rows; row += kTall)
      tall_piece<kTall>(weight, x + row * inputs + 2 * first, inputs, count, out + row * kBlock);
    const Bf16* rest = x + row * inputs + 2 * first;
    float* to = out + row * kBlock;
    switch (rows - row) {
      case 1: tall_piece<1>(weight, rest, inputs, count, to); break;
      case 2: tall_piece<2>(weight, rest, inputs, count, to); break;
      case 3: tall_piece<3>(weight, rest, inputs, count, to); break;
      case 4: tall_piece<4>(weight, rest, inputs, count, to); break;
      case 5: tall_piece<5>(weight, rest, inputs, count, to); break;
    }
  }
}

struct Rows {
  int64_t first, count;
};

// `tile`-th of the even parts of so many rows.
int64_t tiles(int64_t rows) {
  return (rows + kTile - 1) / kTile;
}
Rows rows_of(int64_t rows, int64_t tile) {
  const int64_t parts = tiles(rows), first = rows * tile / parts;
  return {first, rows * (tile + 1) / parts - first};
}

struct Look {
  int64_t span, head, tile;  // tile -1: one query
};

struct PackedBlock {
  int64_t span, head, block;
};

struct WideBuffers {
  std::vector<Bf16> h, q, keys, values;
  std::vector<float> t;
  std::vector<int64_t> blocks;  // where the packed blocks of a span begin
  std::vector<Look> looks;
  std::vector<PackedBlock> packs;
};

struct Wide {
  Work work;
  WideBuffers& own;
};

int64_t end_of(const Span& span) {
  return span.start + span.count;
}

// What is to be attended to, the longest first, and the keys and values that are laid out for it.
void arrange(const Wide& wide) {
  const Step& step = wide.work.step;
  WideBuffers& own = wide.own;
  const int64_t heads = wide.work.model.kv_heads;
  own.looks.clear(), own.packs.clear(), own.blocks.clear();
  int64_t blocks = 0;
  for (int64_t s = 0; s < step.span_count; ++s) {
    const Span& span = step.spans[s];
    own.blocks.push_back(blocks);
    if (span.count == 1) continue;
    const int64_t count = (end_of(span) + kBlock - 1) / kBlock;
    for (int64_t block = 0; block < count; ++block)
      for (int64_t head = 0; head < heads; ++head) own.packs.push_back({s, head, block});
    for (int64_t tile = (span.count + kQueries - 1) / kQueries - 1; tile >= 0; --tile)
      for (int64_t head = 0; head < heads; ++head) own.looks.push_back({s, head, tile});
    blocks += count;
  }
  for (int64_t s = 0; s < step.span_count; ++s)
    for (int64_t head = 0; step.spans[s].count == 1 && head < heads; ++head) own.looks.push_back({s, head, -1});
  fit(own.keys, blocks * heads * kBlock * wide.work.model.size);
  fit(own.values, blocks * heads * kBlock * wide.work.model.size);
}

void shrink_tile(const Wide& wide, int64_t layer, Place place, const Bf16* input, Rows rows) {
  const Lora* lora = adapters(wide.work.step, layer, place);
  const int64_t inputs = wide.work.model.layer[layer].linear[place].inputs;
  if (lora)
    shrink(*lora, wide.work.step, input + rows.first * inputs, inputs, &wide.own.t[rows.first * kRanks], rows.first,
           rows.count);
}

void norm_tile(const Wide& wide, int64_t layer, Place place, int64_t tile) {
  const Model& model = wide.work.model;
  const Rows rows = rows_of(wide.work.step.rows, tile);
  const Bf16* weight = place == kQkv ? model.layer[layer].norm : model.layer[layer].mlp_norm;
  normalise(model, weight, &wide.work.own.x[rows.first * model.width], rows.count,
            &wide.own.h[rows.first * model.width]);
  shrink_tile(wide, layer, place, wide.own.h.data(), rows);
}

// A block of the outputs of a place for some rows: (rows, 64) in scratch, with bias and adapters.
float* tall_place(const Wide& wide, int64_t layer, Place where, int64_t block, const Bf16* input, Rows rows,
                  Scratch& scratch, int index = 0) {
  const Linear& linear = wide.work.model.layer[layer].linear[where];
  float* out = fit(scratch.out, 2 * rows.count * kBlock) + index * rows.count * kBlock;
  std::memset(out, 0, sizeof(float) * rows.count * kBlock);
  tall_product(block_of(linear, block), input + rows.first * linear.inputs, linear.inputs, rows.count, out);
  finish(linear, adapters(wide.work.step, layer, where), wide.work.step, wide.own.t.data() + rows.first * kRanks, block,
         out, rows.first, rows.count);
  return out;
}

// Queries are turned and kept; keys and values go to their places.
void turn_tile(const Wide& wide, int64_t layer, int64_t tile) {
  const Model& model = wide.work.model;
  const Step& step = wide.work.step;
  const int64_t size = model.size, one = step.room_tokens * size, all = step.room_rows * model.kv_heads * one;
  const Rows rows = rows_of(step.rows, tile);
  for (int64_t row = rows.first; row < rows.first + rows.count; ++row) {
    const float* from = &wide.work.own.qkv[row * (model.heads + 2 * model.kv_heads) * size];
    const float *cos = &wide.work.own.cos[row * size], *sin = &wide.work.own.sin[row * size];
    for (int64_t head = 0; head < model.heads; ++head, from += size)
      rotate(from, cos, sin, size, 1.0f / std::sqrt(float(size)), &wide.own.q[(row * model.heads + head) * size]);
    Bf16* to = step.dense + 2 * layer * all + step.kv_rows[row] * model.kv_heads * one + step.positions[row] * size;
    for (int64_t head = 0; head < model.kv_heads; ++head, from += size)
      rotate(from, cos, sin, size, 1.0f, to + head * one);
    for (int64_t head = 0; head < model.kv_heads; ++head, from += size)
      for (int64_t i = 0; i < size; i += kLanes) narrow(to + all + head * one + i, load<Floats>(from + i));
  }
}

struct Stored {
  const Bf16 *keys, *values;
};

Stored stored(const Wide& wide, int64_t layer, int64_t kv_row, int64_t head) {
  const Step& step = wide.work.step;
  const Model& model = wide.work.model;
  const int64_t one = step.room_tokens * model.size, all = step.room_rows * model.kv_heads * one;
  const Bf16* keys = step.dense + 2 * layer * all + (kv_row * model.kv_heads + head) * one;
  return {keys, keys + all};
}

int64_t packed_at(const Wide& wide, int64_t span, int64_t head, int64_t block) {
  const Model& model = wide.work.model;
  return ((wide.own.blocks[span] + block) * model.kv_heads + head) * kBlock * model.size;
}

// Keys as a weight with a column for each token; values as weights with a row for each, 64 of a head's size at a time.
void pack(const Wide& wide, int64_t layer, const PackedBlock& which) {
  const Span& span = wide.work.step.spans[which.span];
  const int64_t size = wide.work.model.size, first = which.block * kBlock;
  const int64_t count = std::min<int64_t>(kBlock, end_of(span) - first);
  const Stored from = stored(wide, layer, span.kv_row, which.head);
  const int64_t at = packed_at(wide, which.span, which.head, which.block);
  Bf16 *keys = &wide.own.keys[at], *values = &wide.own.values[at];
  for (int64_t token = 0; token < kBlock; ++token)
    for (int64_t pair = 0; pair < size / 2; ++pair) {
      uint32_t word = 0;
      if (token < count) std::memcpy(&word, from.keys + (first + token) * size + 2 * pair, sizeof word);
      std::memcpy(keys + 2 * (pair * kBlock + token), &word, sizeof word);
    }
  for (int64_t part = 0; part < size; part += kBlock)
    for (int64_t token = 0; token < kBlock; token += 2)
      for (int64_t i = 0; i < kBlock; i += 2 * kLanes, values += 4 * kLanes) {
        const Bf16* value = from.values + (first + token) * size + part + i;
        const WideHalves a = token < count ? load<WideHalves>(value) : WideHalves{};
        const WideHalves b = token + 1 < count ? load<WideHalves>(value + size) : WideHalves{};
        store(values, first_pairs(a, b));
        store(values + 2 * kLanes, last_pairs(a, b));
      }
}

// One row's scores of a block of keys, of which it sees `seen`, become powers; what was summed before is brought to the
// same scale.
void soften_block(float* scores, int64_t seen, Running& so_far, float* out, int64_t parts, int64_t stride,
                  Bf16* powers) {
  Floats values[kVectors], most = all(so_far.most);
  for (int v = 0; v < kVectors; ++v) {
    if (seen < (v + 1) * kLanes)
      for (int64_t lane = std::max<int64_t>(seen - v * kLanes, 0); lane < kLanes; ++lane)
        scores[v * kLanes + lane] = -INFINITY;
    values[v] = load<Floats>(scores + v * kLanes);
    most = values[v] > most ? values[v] : most;
  }
  float peak = most[0];
  for (int lane = 1; lane < kLanes; ++lane) peak = most[lane] > peak ? most[lane] : peak;
  Floats total = {};
  for (int v = 0; v < kVectors; ++v) {
    const Floats power = values[v] == -INFINITY ? Floats{} : exponential(values[v] - peak);
    total += power;
    narrow(powers + v * kLanes, power);
  }
  const float scale = so_far.most == -INFINITY ? 0.0f : exponential(all(so_far.most - peak))[0];
  if (peak != so_far.most)
    for (int64_t part = 0; part < parts; ++part)
      for (int v = 0; v < kBlock; v += kLanes)
        store(out + part * stride + v, load<Floats>(out + part * stride + v) * scale);
  so_far = {peak, so_far.total * (peak != so_far.most ? scale : 1.0f) + sum(total)};
}

// A stretch of a prompt and one head of keys.
void look(const Wide& wide, const Look& item, Scratch& scratch) {
  const Model& model = wide.work.model;
  const Span& span = wide.work.step.spans[item.span];
  const int64_t size = model.size, group = model.heads / model.kv_heads, parts = size / kBlock;
  const int64_t first = item.tile * kQueries, queries = std::min<int64_t>(kQueries, span.count - first);
  const int64_t rows = queries * group, stride = rows * kBlock, tokens = span.start + first + queries;
  Bf16* q = fit(scratch.q, rows * size);
  for (int64_t query = 0; query < queries; ++query)
    std::memcpy(q + query * group * size,
                &wide.own.q[((span.first + first + query) * model.heads + item.head * group) * size],
                sizeof(Bf16) * group * size);
  float* scores = fit(scratch.scores, stride);
  float* out = fit(scratch.out, parts * stride);
  std::memset(out, 0, sizeof(float) * parts * stride);
  Bf16* powers = fit(scratch.powers, stride);
  scratch.running.assign(rows, {-INFINITY, 0.0f});
  for (int64_t block = 0; block * kBlock < tokens; ++block) {
    const int64_t at = packed_at(wide, item.span, item.head, block);
    std::memset(scores, 0, sizeof(float) * stride);
    tall_product(&wide.own.keys[at], q, size, rows, scores);
    for (int64_t row = 0; row < rows; ++row)
      soften_block(scores + row * kBlock, span.start + first + row / group + 1 - block * kBlock, scratch.running[row],
                   out + row * kBlock, parts, stride, powers + row * kBlock);
    for (int64_t part = 0; part < parts; ++part)
      tall_product(&wide.own.values[at + part * kBlock * kBlock], powers, kBlock, rows, out + part * stride);
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t query = span.first + first + row / group;
    Bf16* to = &wide.work.own.mixed[(query * model.heads + item.head * group + row % group) * size];
    const float factor = 1.0f / scratch.running[row].total;
    for (int64_t i = 0; i < size; i += kLanes)
      narrow(to + i, load<Floats>(out + i / kBlock * stride + row * kBlock + i % kBlock) * factor);
  }
}

// One query of each head of a group: its sequence decodes.
void look_once(const Wide& wide, int64_t layer, const Look& item, Scratch& scratch) {
  const Model& model = wide.work.model;
  const Span& span = wide.work.step.spans[item.span];
  const Stored from = stored(wide, layer, span.kv_row, item.head);
  const int64_t at = (span.first * model.heads + item.head * (model.heads / model.kv_heads)) * model.size;
  attend_with(model, from.keys, from.values, &wide.own.q[at], span.start + 1, scratch, &wide.work.own.mixed[at]);
}

void copy_out(const float* out, Rows rows, int64_t outputs, int64_t block, float* to) {
  for (int64_t row = 0; row < rows.count; ++row)
    std::memcpy(to + (rows.first + row) * outputs + block * kBlock, out + row * kBlock, sizeof(float) * kBlock);
}

void add_out(const float* out, Rows rows, int64_t width, int64_t block, float* x) {
  for (int64_t row = 0; row < rows.count; ++row)
    for (int v = 0; v < kBlock; v += kLanes) {
      float* to = x + (rows.first + row) * width + block * kBlock + v;
      store(to, load<Floats>(to) + load<Floats>(out + row * kBlock + v));
    }
}

void gate_out(const Wide& wide, int64_t layer, int64_t block, Rows rows, Scratch& scratch) {
  const int64_t inner = wide.work.model.inner;
  fit(scratch.out, 2 * rows.count * kBlock);
  const float* gates = tall_place(wide, layer, kGateUp, block, wide.own.h.data(), rows, scratch);
  const float* ups = tall_place(wide, layer, kGateUp, block + inner / kBlock, wide.own.h.data(), rows, scratch, 1);
  for (int64_t row = 0; row < rows.count; ++row)
    close_gate(gates + row * kBlock, ups + row * kBlock,
               &wide.work.own.act[(rows.first + row) * inner + block * kBlock]);
}

int wide_count(void* context, int phase) {
  const Wide& wide = *static_cast<Wide*>(context);
  const Model& model = wide.work.model;
  const Step& step = wide.work.step;
  const int layer = phase / kWidePhases;
  const int parts = int(tiles(step.rows));
  if (layer == model.layers)
    return phase % kWidePhases ? blocks(model.head) * int(tiles(step.wanted_count)) : int(tiles(step.wanted_count));
  const Layer& weights = model.layer[layer];
  switch (phase % kWidePhases) {
    case kWideProject: return blocks(weights.linear[kQkv]) * parts;
    case kPack: return int(wide.own.packs.size());
    case kLook: return int(wide.own.looks.size());
    case kShrinkOut: return adapters(step, layer, kOut) ? parts : 0;
    case kWideMix: return blocks(weights.linear[kOut]) * parts;
    case kWideGate: return int(model.inner / kBlock) * parts;
    case kShrinkDown: return adapters(step, layer, kDown) ? parts : 0;
    case kWideMerge: return blocks(weights.linear[kDown]) * parts;
    default: return parts;
  }
}

// The rows whose logits are wanted: normalised, then a block of their logits.
void wide_head(const Wide& wide, int phase, int number, Scratch& scratch) {
  const Model& model = wide.work.model;
  const Step& step = wide.work.step;
  const int64_t parts = tiles(step.wanted_count), width = model.width;
  const Rows rows = rows_of(step.wanted_count, number % parts);
  if (phase % kWidePhases == 0) {
    for (int64_t row = rows.first; row < rows.first + rows.count; ++row)
      normalise(model, model.norm, &wide.work.own.x[step.wanted[row] * width], 1, &wide.own.h[row * width]);
    return;
  }
  float* out = fit(scratch.out, rows.count * kBlock);
  std::memset(out, 0, sizeof(float) * rows.count * kBlock);
  tall_product(block_of(model.head, number / parts), &wide.own.h[rows.first * width], width, rows.count, out);
  write_logits(wide.work, number / parts, out, rows.first, rows.count);
}

void wide_item(void* context, int phase, int number, void* own) {
  const Wide& wide = *static_cast<Wide*>(context);
  Scratch& scratch = *static_cast<Scratch*>(own);
  const Model& model = wide.work.model;
  Buffers& buffers = wide.work.own;
  const int64_t layer = phase / kWidePhases, all = wide.work.step.rows, parts = tiles(all);
  if (layer == model.layers) return wide_head(wide, phase, number, scratch);
  const int64_t block = number / parts;
  const Rows rows = rows_of(all, number % parts);
  switch (phase % kWidePhases) {
    case kNormQkv: return norm_tile(wide, layer, kQkv, number);
    case kWideProject:
      return copy_out(tall_place(wide, layer, kQkv, block, wide.own.h.data(), rows, scratch), rows,
                      model.layer[layer].linear[kQkv].outputs, block, buffers.qkv.data());
    case kTurn: return turn_tile(wide, layer, number);
    case kPack: return pack(wide, layer, wide.own.packs[number]);
    case kLook: {
      const Look& item = wide.own.looks[number];
      return item.tile < 0 ? look_once(wide, layer, item, scratch) : look(wide, item, scratch);
    }
    case kShrinkOut: return shrink_tile(wide, layer, kOut, buffers.mixed.data(), rows_of(all, number));
    case kWideMix:
      return add_out(tall_place(wide, layer, kOut, block, buffers.mixed.data(), rows, scratch), rows, model.width,
                     block, buffers.x.data());
    case kNormGate: return norm_tile(wide, layer, kGateUp, number);
    case kWideGate: return gate_out(wide, layer, block, rows, scratch);
    case kShrinkDown: return shrink_tile(wide, layer, kDown, buffers.act.data(), rows_of(all, number));
    default:
      return add_out(tall_place(wide, layer, kDown, block, buffers.act.data(), rows, scratch), rows, model.width, block,
                     buffers.x.data());
  }
}

}  // namespace
}  // namespace dataflower
