// One decode step of a Llama: all layers, for a batch of sequences with one token each.
//
// torch takes some thirty operators for a layer, each of which starts and ends a team of threads. Here a layer is five
// phases of a job that the threads work off together (see pool.h). What goes into a product is bf16, like weights, keys
// and values; what comes out of it stays in fp32 until the next.

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <vector>

#include "math.h"
#include "pool.h"
#include "product.h"

namespace dataflower {

struct Linear {
  const Bf16* weight;
  const Bf16* bias;  // or null
  int64_t outputs, inputs;
};

// Adapters side by side at one place of a layer: see lora.py. Null: nothing there.
struct Lora {
  const Bf16* down;       // (columns, inputs)
  const Bf16* up;         // (columns, outputs)
  const int64_t* starts;  // the columns of adapter i are those from starts[i] to starts[i + 1]
};

enum Place { kQkv, kOut, kGateUp, kDown, kPlaces };

struct Layer {
  const Bf16 *norm, *mlp_norm;
  Linear linear[kPlaces];
};

struct Model {
  int64_t layers, width, heads, kv_heads, size, inner;
  float epsilon, rope_scale;
  const float* frequencies;  // (size / 2)
  const Bf16 *embedding, *norm;  // embedding: null if its rows are those of the head
  Linear head;
  const Layer* layer;
};

// Rows of a step that are neighbours in one sequence: `count` of them from `first` on, after `start` earlier tokens.
struct Span {
  int64_t first, count, kv_row, start;
};

struct Step {
  int64_t rows;
  const int64_t *tokens, *positions, *kv_rows;
  Bf16* dense;  // (layers, 2, kv rows, kv heads, kv tokens, size)
  int64_t room_rows, room_tokens;
  const Lora* lora;        // (layers, places), or null
  const int64_t* members;  // (rows) number of the adapter, -1 for none
  float* logits;     // (rows, head.outputs)
  float* best;       // (rows) the largest logit, NaN if one is
  int64_t* likely;   // (rows) where it is; the first of several
  int64_t wanted_count;   // rows of logits; all of them, and nothing but one token of each sequence, if spans is null
  const int64_t* wanted;  // the rows whose logits those are
  int64_t span_count;
  const Span* spans;
};

namespace {

constexpr int kRanks = 64 * 8;  // columns of one adapter at one place, at most
constexpr int kMembers = 4;     // queries with the same keys that are worked on together
enum Phase { kProject, kAttend, kMix, kGate, kMerge, kPhasesOfLayer };

// The largest score so far, and the sum of the powers relative to it.
struct Running {
  float most, total;
};

struct Scratch {
  std::vector<Bf16> h, q, powers;
  std::vector<float> t, scores, out;
  std::vector<Running> running;
  bool ready = false;
};

struct Buffers {
  std::vector<float> x, qkv, cos, sin, peaks;
  std::vector<Bf16> mixed, act;
};

struct Work {
  const Model& model;
  const Step& step;
  Buffers& own;
};

template <class T>
T* fit(std::vector<T>& buffer, int64_t size) {
  if (int64_t(buffer.size()) < size) buffer.assign(size, T{});
  return buffer.data();
}

int blocks(const Linear& linear) { return int((linear.outputs + kBlock - 1) / kBlock); }

const Bf16* block_of(const Linear& linear, int64_t block) {
  return linear.weight + block * kBlock * linear.inputs;
}

// x = the vector of a token. In a block of the head a row's neighbours lie two by two, each two with those of 63 others.
void embed(const Model& model, int64_t token, float* x) {
  if (model.embedding) {
    for (int64_t i = 0; i < model.width; i += kLanes) store(x + i, widen(model.embedding + token * model.width + i));
    return;
  }
  const Bf16* pair = block_of(model.head, token / kBlock) + 2 * (token % kBlock);
  for (int64_t i = 0; i < model.width; i += 2, pair += 2 * kBlock) {
    x[i] = widen(pair[0]);
    x[i + 1] = widen(pair[1]);
  }
}

// h = rms_norm(x) * weight.
void normalise(const Model& model, const Bf16* weight, const float* x, int64_t rows, Bf16* h) {
  const int64_t width = model.width;
  for (int64_t row = 0; row < rows; ++row, x += width, h += width) {
    Floats squares = {};
    for (int64_t i = 0; i < width; i += kLanes) {
      const Floats value = load<Floats>(x + i);
      squares += value * value;
    }
    const float factor = 1.0f / std::sqrt(sum(squares) / float(width) + model.epsilon);
    for (int64_t i = 0; i < width; i += kLanes) narrow(h + i, load<Floats>(x + i) * factor * widen(weight + i));
  }
}

struct Columns {
  int64_t first, last;
};

Columns columns(const Lora& lora, const Step& step, int64_t row) {
  const int64_t member = step.members[row];
  return member < 0 ? Columns{0, 0} : Columns{lora.starts[member], lora.starts[member + 1]};
}

// t (rows, kRanks) = what each row's adapter makes of its inputs h, from the row `first` on.
void shrink(const Lora& lora, const Step& step, const Bf16* h, int64_t inputs, float* t, int64_t first, int64_t rows) {
  for (int64_t row = first; row < first + rows; ++row, h += inputs, t += kRanks) {
    const Columns mine = columns(lora, step, row);
    for (int64_t column = mine.first; column < mine.last; ++column) {
      const Bf16* down = lora.down + column * inputs;
      Floats total = {};
      for (int64_t i = 0; i < inputs; i += 2 * kLanes) total = multiply(total, load<Words>(h + i), load<Words>(down + i));
      t[column - mine.first] = sum(total);
    }
  }
}

// What a block of outputs gets besides the product: bias and adapters. `out` and `t` begin with the row `begin`.
void finish(const Linear& linear, const Lora* lora, const Step& step, const float* t, int64_t block, float* out,
            int64_t begin, int64_t rows) {
  const int64_t first = block * kBlock;
  if (!linear.bias && !lora) return;
  for (int64_t row = begin; row < begin + rows; ++row, out += kBlock, t += kRanks) {
    Floats total[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      total[v] = load<Floats>(out + v * kLanes);
      if (linear.bias) total[v] += widen(linear.bias + first + v * kLanes);
    }
    const Columns mine = lora ? columns(*lora, step, row) : Columns{0, 0};
    for (int64_t column = mine.first; column < mine.last; ++column) {
      const Bf16* up = lora->up + column * linear.outputs + first;
      const float factor = t[column - mine.first];
      for (int v = 0; v < kVectors; ++v) total[v] += widen(up + v * kLanes) * factor;
    }
    for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, total[v]);
  }
}

const Lora* adapters(const Step& step, int64_t layer, Place place) {
  if (!step.lora) return nullptr;
  const Lora* lora = step.lora + layer * kPlaces + place;
  return lora->down ? lora : nullptr;
}

// A block of the outputs of a place of a layer into scratch.out, `index`-th (rows, 64) there.
float* place(const Work& work, int64_t layer, Place where, int64_t block, const Bf16* input, Scratch& scratch,
             int index = 0) {
  const Linear& linear = work.model.layer[layer].linear[where];
  const int64_t rows = work.step.rows;
  const Lora* lora = adapters(work.step, layer, where);
  if (lora && !scratch.ready) shrink(*lora, work.step, input, linear.inputs, fit(scratch.t, rows * kRanks), 0, rows);
  scratch.ready = true;
  float* out = fit(scratch.out, 2 * rows * kBlock) + index * rows * kBlock;
  product(block_of(linear, block), input, linear.inputs, int(rows), out);
  finish(linear, lora, work.step, scratch.t.data(), block, out, 0, rows);
  return out;
}

const Bf16* normed(const Work& work, const Bf16* weight, Scratch& scratch) {
  Bf16* h = fit(scratch.h, work.step.rows * work.model.width);
  if (!scratch.ready) normalise(work.model, weight, work.own.x.data(), work.step.rows, h);
  return h;
}

void project(const Work& work, int64_t layer, int64_t block, Scratch& scratch) {
  const Bf16* h = normed(work, work.model.layer[layer].norm, scratch);
  const float* out = place(work, layer, kQkv, block, h, scratch);
  const int64_t outputs = work.model.layer[layer].linear[kQkv].outputs;
  for (int64_t row = 0; row < work.step.rows; ++row)
    std::memcpy(&work.own.qkv[row * outputs + block * kBlock], out + row * kBlock, sizeof(float) * kBlock);
}

void rotate(const float* from, const float* cos, const float* sin, int64_t size, float factor, Bf16* to) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < size; i += kLanes) {
    const float* other = from + (i < half ? i + half : i - half);
    const Floats turned = load<Floats>(from + i) * load<Floats>(cos + i) + load<Floats>(other) * load<Floats>(sin + i);
    narrow(to + i, turned * factor);
  }
}

// scores (tokens) = keys (tokens, size) times q; sixteen at once, beyond the end as well.
void score(const Bf16* keys, const Bf16* q, int64_t tokens, int64_t size, float* scores) {
  for (int64_t first = 0; first < tokens; first += kLanes) {
    Floats totals[kLanes];
    for (int64_t t = 0; t < kLanes; ++t) {
      const Bf16* key = keys + std::min(first + t, tokens - 1) * size;
      totals[t] = Floats{};
      for (int64_t i = 0; i < size; i += 2 * kLanes) totals[t] = multiply(totals[t], load<Words>(key + i), load<Words>(q + i));
    }
    store(scores + first, sums(totals));
  }
}

// Softmax of `tokens` scores, without the division: its sum is returned. Both have room for whole vectors.
float soften(float* scores, int64_t tokens, Bf16* powers) {
  for (int64_t t = tokens; t % kLanes; ++t) scores[t] = -INFINITY;
  Floats most = load<Floats>(scores);
  for (int64_t t = kLanes; t < tokens; t += kLanes) {
    const Floats value = load<Floats>(scores + t);
    most = value > most ? value : most;
  }
  float peak = most[0];
  for (int lane = 1; lane < kLanes; ++lane) peak = most[lane] > peak ? most[lane] : peak;
  Floats total = {};
  for (int64_t t = 0; t < tokens; t += kLanes) {
    const Floats value = load<Floats>(scores + t);
    const Floats power = value == -INFINITY ? Floats{} : exponential(value - peak);
    total += power;
    narrow(powers + t, power);
  }
  return sum(total);
}

// out (members, size) = powers (members, room) times values (tokens, size), times a factor for each member.
template <int kMembers>
void combine(const Bf16* values, const Bf16* powers, int64_t room, int64_t tokens, int64_t size, const float* factors,
             Bf16* out) {
  for (int64_t i = 0; i < size; i += 2 * kLanes) {
    Floats total[kMembers][2] = {};
    for (int64_t t = 0; t < tokens; t += 2) {  // beyond an odd end a power is 0
      const WideHalves a = load<WideHalves>(values + t * size + i);
      const WideHalves b = load<WideHalves>(values + std::min(t + 1, tokens - 1) * size + i);
      const Words low = first_pairs(a, b), high = last_pairs(a, b);
      for (int member = 0; member < kMembers; ++member) {
        const Words power = pair_at(powers + member * room + t);
        total[member][0] = multiply(total[member][0], low, power);
        total[member][1] = multiply(total[member][1], high, power);
      }
    }
    for (int member = 0; member < kMembers; ++member)
      for (int v = 0; v < 2; ++v) narrow(out + member * size + i + v * kLanes, total[member][v] * factors[member]);
  }
}

// Cosines and sines of the rotary embedding, rounded as they are for prompts; the first half of the sines is negative.
void turn(const Model& model, const Step& step, float* cos, float* sin) {
  const int64_t half = model.size / 2;
  for (int64_t row = 0; row < step.rows; ++row, cos += model.size, sin += model.size) {
    for (int64_t i = 0; i < half; ++i) {
      const float angle = float(step.positions[row]) * model.frequencies[i];
      cos[i] = cos[half + i] = rounded(std::cos(angle) * model.rope_scale);
      sin[half + i] = rounded(std::sin(angle) * model.rope_scale);
      sin[i] = -sin[half + i];
    }
  }
}

// out (group, size): the queries q (group, size) of one sequence attend to its keys and values (tokens, size).
void attend_with(const Model& model, const Bf16* keys, const Bf16* values, const Bf16* q, int64_t tokens,
                 Scratch& scratch, Bf16* out) {
  const int64_t size = model.size, group = model.heads / model.kv_heads;
  const int64_t room = (tokens + kLanes - 1) / kLanes * kLanes;
  float* scores = fit(scratch.scores, room);
  Bf16* powers = fit(scratch.powers, kMembers * room);
  for (int64_t first = 0; first < group; first += kMembers, out += kMembers * size) {
    const int64_t count = std::min<int64_t>(kMembers, group - first);
    float factors[kMembers];
    for (int64_t member = 0; member < count; ++member) {
      score(keys, q + (first + member) * size, tokens, size, scores);
      factors[member] = 1.0f / soften(scores, tokens, powers + member * room);
    }
    switch (count) {
      case 1: combine<1>(values, powers, room, tokens, size, factors, out); break;
      case 2: combine<2>(values, powers, room, tokens, size, factors, out); break;
      case 3: combine<3>(values, powers, room, tokens, size, factors, out); break;
      default: combine<kMembers>(values, powers, room, tokens, size, factors, out);
    }
  }
}

// One sequence and one head of keys: the new key and value are written, its queries attend.
void attend(const Work& work, int64_t layer, int64_t item, Scratch& scratch) {
  const Model& model = work.model;
  const Step& step = work.step;
  const int64_t row = item / model.kv_heads, head = item % model.kv_heads, size = model.size;
  const int64_t group = model.heads / model.kv_heads, position = step.positions[row], tokens = position + 1;
  const float* qkv = &work.own.qkv[row * (model.heads + 2 * model.kv_heads) * size];
  const float *cos = &work.own.cos[row * size], *sin = &work.own.sin[row * size];
  const int64_t one = step.room_tokens * size, all = step.room_rows * model.kv_heads * one;
  Bf16* keys = step.dense + 2 * layer * all + (step.kv_rows[row] * model.kv_heads + head) * one;
  Bf16* values = keys + all;
  rotate(qkv + (model.heads + head) * size, cos, sin, size, 1.0f, keys + position * size);
  const float* value = qkv + (model.heads + model.kv_heads + head) * size;
  for (int64_t i = 0; i < size; i += kLanes) narrow(values + position * size + i, load<Floats>(value + i));
  Bf16* q = fit(scratch.q, group * size);
  for (int64_t member = 0; member < group; ++member)
    rotate(qkv + (head * group + member) * size, cos, sin, size, 1.0f / std::sqrt(float(size)), q + member * size);
  attend_with(model, keys, values, q, tokens, scratch, &work.own.mixed[(row * model.heads + head * group) * size]);
}

// x += the product of a block: the end of the attention, and of the rest of a layer.
void add(const Work& work, int64_t layer, Place where, int64_t block, const Bf16* input, Scratch& scratch) {
  const float* out = place(work, layer, where, block, input, scratch);
  for (int64_t row = 0; row < work.step.rows; ++row) {
    float* x = &work.own.x[row * work.model.width + block * kBlock];
    for (int v = 0; v < kBlock; v += kLanes) store(x + v, load<Floats>(x + v) + load<Floats>(out + row * kBlock + v));
  }
}

// act (64) = silu(gates) * ups.
void close_gate(const float* gates, const float* ups, Bf16* act) {
  for (int v = 0; v < kBlock; v += kLanes) {
    const Floats value = load<Floats>(gates + v);
    narrow(act + v, value / (1.0f + exponential(-value)) * load<Floats>(ups + v));
  }
}

void gate(const Work& work, int64_t layer, int64_t block, Scratch& scratch) {
  const Model& model = work.model;
  const Bf16* h = normed(work, model.layer[layer].mlp_norm, scratch);
  const float* gates = place(work, layer, kGateUp, block, h, scratch);
  const float* ups = place(work, layer, kGateUp, block + model.inner / kBlock, h, scratch, 1);
  for (int64_t row = 0; row < work.step.rows; ++row)
    close_gate(gates + row * kBlock, ups + row * kBlock, &work.own.act[row * model.inner + block * kBlock]);
}

// The largest of the values, NaN if one is. There is room for a whole block; what is beyond the end may be anything.
float peak(float* values, int64_t count) {
  for (; count < kBlock; ++count) values[count] = -INFINITY;
  Floats most = load<Floats>(values), total = most;
  for (int v = kLanes; v < kBlock; v += kLanes) {
    const Floats value = load<Floats>(values + v);
    most = value > most ? value : most;
    total += value;
  }
  float largest = most[0];
  for (int lane = 1; lane < kLanes; ++lane) largest = most[lane] > largest ? most[lane] : largest;
  const float check = sum(total);
  if (check == check) return largest;  // else there may be a NaN, or infinities of both signs
  for (int i = 0; i < kBlock; ++i)
    if (values[i] != values[i]) return values[i];
  return largest;
}

// A block of the logits of some rows, `out` (rows, 64), and the largest of each.
void write_logits(const Work& work, int64_t block, float* out, int64_t first, int64_t rows) {
  const Linear& head = work.model.head;
  const int64_t count = std::min<int64_t>(kBlock, head.outputs - block * kBlock), all = blocks(head);
  for (int64_t row = first; row < first + rows; ++row, out += kBlock) {
    std::memcpy(work.step.logits + row * head.outputs + block * kBlock, out, sizeof(float) * count);
    work.own.peaks[row * all + block] = peak(out, count);
  }
}

void speak(const Work& work, int64_t block, Scratch& scratch) {
  const Linear& head = work.model.head;
  const int64_t rows = work.step.rows;
  const Bf16* h = normed(work, work.model.norm, scratch);
  scratch.ready = true;
  float* out = fit(scratch.out, 2 * rows * kBlock);
  product(block_of(head, block), h, head.inputs, int(rows), out);
  write_logits(work, block, out, 0, rows);
}

// For each row the likeliest token, out of the peaks of its blocks.
void choose(const Work& work) {
  const int64_t all = blocks(work.model.head), outputs = work.model.head.outputs;
  for (int64_t row = 0; row < work.step.wanted_count; ++row) {
    const float* peaks = &work.own.peaks[row * all];
    int64_t block = 0;
    for (int64_t other = 1; other < all && peaks[block] == peaks[block]; ++other)
      if (!(peaks[other] <= peaks[block])) block = other;
    const float* logits = work.step.logits + row * outputs;
    int64_t token = block * kBlock;
    while (token + 1 < std::min(outputs, (block + 1) * kBlock) && logits[token] != peaks[block]) ++token;
    work.step.best[row] = peaks[block];
    work.step.likely[row] = token;
  }
}

// --- the job

int count(void* context, int phase) {
  const Work& work = *static_cast<Work*>(context);
  const Model& model = work.model;
  const int layer = phase / kPhasesOfLayer;
  if (layer == model.layers) return blocks(model.head);
  const Layer& weights = model.layer[layer];
  switch (phase % kPhasesOfLayer) {
    case kProject: return blocks(weights.linear[kQkv]);
    case kAttend: return int(work.step.rows * model.kv_heads);
    case kMix: return blocks(weights.linear[kOut]);
    case kGate: return int(model.inner / kBlock);
    default: return blocks(weights.linear[kDown]);
  }
}

void item(void* context, int phase, int number, void* own) {
  const Work& work = *static_cast<Work*>(context);
  Scratch& scratch = *static_cast<Scratch*>(own);
  const int layer = phase / kPhasesOfLayer;
  if (layer == work.model.layers) return speak(work, number, scratch);
  switch (phase % kPhasesOfLayer) {
    case kProject: return project(work, layer, number, scratch);
    case kAttend: return attend(work, layer, number, scratch);
    case kMix: return add(work, layer, kOut, number, work.own.mixed.data(), scratch);
    case kGate: return gate(work, layer, number, scratch);
    default: return add(work, layer, kDown, number, work.own.act.data(), scratch);
  }
}

void forget(void*, int, void* own) { static_cast<Scratch*>(own)->ready = false; }
void* make_scratch() { return new Scratch; }

}  // namespace
}  // namespace dataflower

#include "wide.h"

namespace dataflower {
namespace {

// What calls take turns to use. It is never freed: threads wait in it until the process ends.
struct Shared {
  std::mutex turn;
  Pool pool;
  Buffers buffers;
  WideBuffers wide;
};

Shared* shared = nullptr;

// A child of fork has none of the threads, and the lock may be somebody's who is not there: it begins anew.
void renew() { shared = new Shared; }

const int watched = (renew(), pthread_atfork(nullptr, nullptr, renew));

}  // namespace
}  // namespace dataflower

extern "C" {

// The logits come out in fp32, and the likeliest token of each row. Callers on several threads take turns.
void dataflower_decode(const dataflower::Model* model, const dataflower::Step* step, int threads) {
  using namespace dataflower;
  const std::lock_guard<std::mutex> held(shared->turn);
  Buffers& buffers = shared->buffers;
  const int64_t rows = step->rows;
  fit(buffers.x, rows * model->width);
  fit(buffers.qkv, rows * (model->heads + 2 * model->kv_heads) * model->size);
  fit(buffers.mixed, rows * model->heads * model->size);
  fit(buffers.act, rows * model->inner);
  fit(buffers.peaks, step->wanted_count * blocks(model->head));
  for (int64_t row = 0; row < rows; ++row) embed(*model, step->tokens[row], &buffers.x[row * model->width]);
  turn(*model, *step, fit(buffers.cos, rows * model->size), fit(buffers.sin, rows * model->size));
  Work work{*model, *step, buffers};
  if (step->spans) {
    Wide wide{work, shared->wide};
    fit(wide.own.h, std::max(rows, step->wanted_count) * model->width);
    fit(wide.own.q, rows * model->heads * model->size);
    if (step->lora) fit(wide.own.t, rows * kRanks);
    arrange(wide);
    shared->pool.run({&wide, int(model->layers) * kWidePhases + 2, wide_count, wide_item, forget}, threads, make_scratch);
  } else {
    shared->pool.run({&work, int(model->layers) * kPhasesOfLayer + 1, count, item, forget}, threads, make_scratch);
  }
  choose(work);
}

// out (rows, outputs) = x (rows, inputs) times a weight: to compare with oneDNN's own product.
void dataflower_product(const dataflower::Linear* linear, const dataflower::Bf16* x, int64_t rows, float* out) {
  using namespace dataflower;
  std::vector<float> block(rows * kBlock);
  for (int64_t first = 0; first < linear->outputs; first += kBlock) {
    product(block_of(*linear, first / kBlock), x, linear->inputs, int(rows), block.data());
    const int64_t count = std::min<int64_t>(kBlock, linear->outputs - first);
    for (int64_t row = 0; row < rows; ++row)
      std::memcpy(out + row * linear->outputs + first, &block[row * kBlock], sizeof(float) * count);
  }
}
}
