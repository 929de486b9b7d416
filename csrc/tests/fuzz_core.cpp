// Calls every function of the core with random shapes and values and checks what must hold for any input:
//
//   fuzz_core --inputs N --seed S [--first I] [--op NAME] [--threads T]
//
// Inputs go to the ops in turn, or all to one. Input I depends on the seed and I alone, so `--first I --inputs 1
// --op NAME` repeats it. Prints one line of JSON: inputs by op and status, and a digest of all results. The first
// violation goes to stderr and ends the run with status 1. Meant for builds with sanitizers (GLASS_FAST_SANITIZE),
// which see what it cannot.
//
// Every call is made twice, with one thread and with T, on outputs poisoned with different patterns: both must
// agree to the last bit, so that an element that nobody writes, or that depends on the thread count, shows.

#include <array>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/mask_labels.h"
#include "core/matching.h"
#include "core/parallel.h"
#include "core/propagation.h"
#include "core/slot_attention.h"
#include "tests/fuzz_values.h"

namespace glass_fast::fuzz {

namespace {

std::string current;  // what a violation is reported with
Digest digest;        // of all results of the current op so far

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz_core: %s: %s\n", current.c_str(), what);
  std::exit(1);
}

const char* name(Status status) {
  switch (status) {
    case Status::kOk:
      return "ok";
    case Status::kNonFinite:
      return "non_finite";
    case Status::kOverflow:
      return "overflow";
    case Status::kBadCount:
      return "bad_count";
    case Status::kBadLabel:
      return "bad_label";
    case Status::kBadShape:
      return "bad_shape";
  }
  return "unknown";
}

void require_same_result(const Result& a, const Result& b) {
  require(a.status == b.status && a.batch == b.batch && a.row == b.row && a.column == b.column,
          "the result depends on the thread count");
  require(a.ok() == describe("op", a).empty(), "exactly the errors have a description");
}

// --- matching ---------------------------------------------------------------------------------------------------

struct MatchingInput {
  int64_t batch, slots, segments;
  Buffer<int64_t> counts;
  bool with_counts;

  int64_t count(int64_t b) const { return with_counts ? counts[b] : segments; }
};

// No exchange of two slots, and no move to a free one, may lower the total.
template <typename Float>
void require_no_better_exchange(const MatchingInput& in, const Buffer<Float>& cost, const Buffer<int64_t>& match,
                                int64_t b) {
  const auto at = [&](int64_t slot, int64_t k) {
    return slot < 0 ? 0.0 : static_cast<double>(cost[(b * in.slots + slot) * in.segments + k]);
  };
  std::set<int64_t> free;
  for (int64_t s = 0; s < in.slots; ++s) free.insert(s);
  for (int64_t k = 0; k < in.count(b); ++k) free.erase(match[b * in.segments + k]);
  double largest = 0.0;
  for (int64_t k = 0; k < in.count(b); ++k)
    for (int64_t s = 0; s < in.slots; ++s) largest = std::max(largest, std::abs(at(s, k)));
  const double rounding = 1e-12 * largest;  // of a sum of up to 24 costs
  for (int64_t k = 0; k < in.count(b); ++k) {
    const int64_t mine = match[b * in.segments + k];
    for (const int64_t s : free)
      require(mine < 0 || at(mine, k) <= at(s, k) + rounding, "a free slot would have been cheaper");
    for (int64_t j = 0; j < k; ++j) {
      const int64_t other = match[b * in.segments + j];
      require(at(mine, k) + at(other, j) <= at(other, k) + at(mine, j) + rounding,
              "two segments would rather exchange their slots");
    }
  }
}

template <typename Float>
void require_assignment(const MatchingInput& in, const Buffer<Float>& cost, const Buffer<int64_t>& match) {
  for (int64_t b = 0; b < in.batch; ++b) {
    std::set<int64_t> taken;
    for (int64_t k = 0; k < in.segments; ++k) {
      const int64_t slot = match[b * in.segments + k];
      require(slot >= -1 && slot < in.slots, "a slot is out of range");
      require(slot < 0 || k < in.count(b), "a segment that is not valid was matched");
      require(slot < 0 || taken.insert(slot).second, "a slot was taken twice");
    }
    require(static_cast<int64_t>(taken.size()) == std::min(in.slots, in.count(b)), "a pair is missing");
    require_no_better_exchange(in, cost, match, b);
  }
}

// Which error the input has to give; NaN may stand where it is never read.
template <typename Float>
bool is_expected(const MatchingInput& in, const Buffer<Float>& cost, const Result& result) {
  if (in.batch < 0 || in.slots < 0 || in.segments < 0) return result.status == Status::kBadShape;
  bool bad_count = false, non_finite = false, overflow = false;
  for (int64_t b = 0; b < in.batch; ++b) {
    if (in.count(b) < 0 || in.count(b) > in.segments) {
      bad_count = true;
      continue;
    }
    for (int64_t s = 0; s < in.slots; ++s)
      for (int64_t k = 0; k < in.count(b); ++k) {
        const auto value = static_cast<double>(cost[(b * in.slots + s) * in.segments + k]);
        non_finite |= !std::isfinite(value);
        overflow |= std::isfinite(value) && std::abs(value) > 1e300;
      }
  }
  switch (result.status) {
    case Status::kBadCount:
      return bad_count && (in.count(result.batch) < 0 || in.count(result.batch) > in.segments);
    case Status::kNonFinite:
      return non_finite &&
             !std::isfinite(cost[(result.batch * in.slots + result.row) * in.segments + result.column]);
    case Status::kOverflow:
      return overflow;
    case Status::kOk:
      return !bad_count && !non_finite && !overflow;
    default:
      return false;
  }
}

template <typename Float>
Status fuzz_matching(Random& random, int threads) {
  const int64_t most = random.of({int64_t{4}, int64_t{9}, int64_t{12}, int64_t{24}});
  // Threads pay, and are used, for hundreds of small problems only.
  const int64_t batch = random.size(0, random.one_in(8) ? 400 : 20), slots = random.size(0, most),
                segments = random.size(0, most);
  const MatchingInput in{batch, slots, segments, Buffer<int64_t>(batch), !random.one_in(3)};
  for (int64_t& count : in.counts)
    count = random.one_in(400) ? random.of({int64_t{-1}, segments + 1})
                               : random.between(0, std::max<int64_t>(segments, 0));
  const Buffer<Float> cost(cells({batch, slots, segments}));
  draw(random, draw_kind(random), cost);
  const Buffer<int64_t> match(cells({batch, segments})), again(match.size());
  const auto run = [&](int workers, int round, const Buffer<int64_t>& out) {
    out.poison(round);
    return matching(cost.get(), in.with_counts ? in.counts.get() : nullptr, batch, slots, segments, workers,
                    out.get());
  };
  const Result result = run(1, 0, match), second = run(threads, 1, again);
  require_same_result(result, second);
  require(is_expected(in, cost, result), "not the status that the input asks for");
  if (result.status != Status::kBadShape) require(same(match, again), "match differs between two calls");
  if (result.ok()) digest.add(match);
  if (result.ok())
    require_assignment(in, cost, match);
  else if (result.status != Status::kBadShape)
    for (const int64_t slot : match) require(slot == -1, "an error has to leave no match");
#ifdef GLASS_FAST_FUZZ_PLANT_BUG
  // Shows that the sanitizers see what happens here: a read beyond the buffer and, between threads, a race.
  const volatile Float* planted = cost.get();
  if (cost.size() > 0) (void)planted[cost.size()];
  int64_t shared = 0;
  parallel_tasks(4, 4, [&](int, int64_t, int64_t) { ++shared; });
#endif
  return result.status;
}

// --- mask_labels ------------------------------------------------------------------------------------------------

Status fuzz_mask_labels(Random& random, int threads) {
  const MaskLabelsShape shape{random.size(0, 4),  random.size(0, 6),  random.size(1, 13),
                              random.size(1, 13), random.size(1, 90), random.size(1, 40)};
  const bool bad_shape = shape.batch < 0 || shape.classes < 0 || shape.map_height < 1 || shape.map_width < 1 ||
                         shape.height < 1 || shape.width < 1;
  const int64_t size = cells({shape.map_height, shape.map_width});
  const Buffer<float> maps(cells({shape.batch, shape.classes, size}));
  const Buffer<uint8_t> labels(cells({shape.batch, shape.classes}));
  draw(random, draw_kind(random), maps, 0.0, 1.0);
  bool bad_label = false, non_finite = false;
  for (int64_t i = 0; i < labels.size(); ++i) {
    labels[i] = static_cast<uint8_t>(random.one_in(300) ? 255 : random.one_in(3) ? 0 : random.between(1, 254));
    bad_label |= labels[i] == 255;
    // Maps of padding are never read.
    if (labels[i] != 0)
      for (int64_t c = 0; c < size; ++c) non_finite |= !std::isfinite(maps[i * size + c]);
  }
  const float threshold = random.one_in(10) ? special_value<float>(random) : static_cast<float>(random.unit());
  const float uncertain = random.one_in(10) ? special_value<float>(random) : threshold * 0.75f;
  const Buffer<uint8_t> out(bad_shape ? 0 : cells({shape.batch, shape.height, shape.width})), again(out.size());
  out.poison(0);
  again.poison(1);
  const Result result = mask_labels(maps.get(), labels.get(), shape, threshold, uncertain, 1, out.get());
  require_same_result(result,
                      mask_labels(maps.get(), labels.get(), shape, threshold, uncertain, threads, again.get()));
  if (bad_shape || !(bad_label || non_finite))
    require(result.status == (bad_shape ? Status::kBadShape : Status::kOk), "not the status the input asks for");
  else
    require(
        (result.status == Status::kBadLabel && bad_label) || (result.status == Status::kNonFinite && non_finite),
        "a bad value was accepted");
  if (!result.ok()) return result.status;
  require(same(out, again), "labels differ between two calls");
  digest.add(out);
  for (int64_t b = 0; b < shape.batch; ++b) {
    std::array<bool, 256> allowed{};
    allowed[0] = allowed[255] = true;
    for (int64_t k = 0; k < shape.classes; ++k) allowed[labels[b * shape.classes + k]] = true;
    const int64_t pixels = shape.height * shape.width;
    for (int64_t i = 0; i < pixels; ++i)
      require(allowed[out[b * pixels + i]], "a label that the image does not have");
  }
  return result.status;
}

// --- propagation ------------------------------------------------------------------------------------------------

Status fuzz_propagation(Random& random, int threads) {
  const PropagationShape shape{random.size(0, 5), random.size(0, 70), random.size(0, 20), random.size(0, 5)};
  const int64_t tokens = shape.tokens, classes = shape.classes;
  const bool bad = shape.batch < 0 || tokens < 0 || classes < 0 || shape.tau < 0;
  const Buffer<float> self_map(cells({shape.batch, tokens, tokens})), maps(cells({shape.batch, tokens, classes}));
  const Kind kind = draw_kind(random);
  // Rows that sum to at most about 2, so that plain values stay in range.
  draw(random, kind, self_map, 0.0, 4.0 / static_cast<double>(std::max<int64_t>(tokens, 1)));
  draw(random, kind == Kind::kTies ? Kind::kPlain : kind, maps, 0.0, 1.0);
  const Buffer<float> out(bad ? 0 : maps.size()), again(out.size());
  out.poison(0);
  again.poison(1);
  const Result result = propagation(self_map.get(), maps.get(), shape, 1, out.get());
  require_same_result(result, propagation(self_map.get(), maps.get(), shape, threads, again.get()));
  require(result.status == (bad ? Status::kBadShape : Status::kOk), "not the status that the input asks for");
  require(same(out, again), "maps differ between two calls");
  if (result.ok()) digest.add(out);
  if (!result.ok() || kind != Kind::kPlain) return result.status;
  std::vector<double> now(maps.begin(), maps.end()), next(now.size());
  for (int64_t pass = 0; pass < shape.tau; ++pass, now.swap(next))
    for (int64_t b = 0; b < shape.batch; ++b)
      for (int64_t q = 0; q < tokens; ++q)
        for (int64_t c = 0; c < classes; ++c) {
          double sum = 0.0;
          for (int64_t t = 0; t < tokens; ++t)
            sum += static_cast<double>(self_map[(b * tokens + q) * tokens + t]) *
                   now[static_cast<size_t>((b * tokens + t) * classes + c)];
          next[static_cast<size_t>((b * tokens + q) * classes + c)] = sum;
        }
  // All terms are positive: each pass adds a relative error of at most about 70 roundings of 6e-8.
  for (int64_t i = 0; i < out.size(); ++i)
    require(std::abs(out[i] - now[static_cast<size_t>(i)]) <= 3e-5 * now[static_cast<size_t>(i)] + 1e-30,
            "far from the product in double");
  return result.status;
}

// --- slot attention ---------------------------------------------------------------------------------------------

constexpr size_t kTensors = 17;

struct Tensors {
  std::vector<Buffer<float>> all;

  explicit Tensors(const SlotAttentionShape& s) {
    const int64_t c = s.channels, d = s.width, h = s.hidden;
    for (const int64_t size : {cells({c}), cells({c}), cells({d}), cells({d}), cells({d}), cells({d}),
                               cells({d, d}), cells({d, c}), cells({d, c}), cells({3, d, d}), cells({3, d, d}),
                               cells({3, d}), cells({3, d}), cells({h, d}), cells({h}), cells({d, h}), cells({d})})
      all.emplace_back(size);
  }

  template <typename Pointer>
  SlotAttentionTensors<Pointer> view() const {
    static_assert(sizeof(SlotAttentionTensors<Pointer>) == kTensors * sizeof(Pointer));
    std::array<Pointer, kTensors> pointers;
    for (size_t i = 0; i < kTensors; ++i) pointers[i] = all[i].get();
    return std::bit_cast<SlotAttentionTensors<Pointer>>(pointers);
  }
};

struct SlotAttentionInput {
  SlotAttentionShape shape;
  bool bad;
  Buffer<float> inputs, slots;
  Buffer<uint8_t> active;
  bool with_active;
  Tensors weights;
  bool plain_weights;
  float epsilon;

  const uint8_t* active_or_null() const { return with_active ? active.get() : nullptr; }
  bool has_active_slot(int64_t b) const {
    const uint8_t* first = active.get() + b * shape.slots;
    return !with_active || std::any_of(first, first + shape.slots, [](uint8_t x) { return x != 0; });
  }
  bool is_moderate(int64_t b) const {
    const int64_t tokens = shape.tokens * shape.channels, states = shape.slots * shape.width;
    return plain_weights && has_active_slot(b) && all_moderate(inputs.get() + b * tokens, tokens) &&
           all_moderate(slots.get() + b * states, states);
  }
};

SlotAttentionInput draw_slot_attention(Random& random) {
  const int64_t heads = random.one_in(40) ? random.size(1, 5) : random.of({int64_t{1}, int64_t{2}, int64_t{3}});
  const int64_t width = random.one_in(30) ? random.size(1, 30) : cells({heads, random.between(1, 10)});
  SlotAttentionShape s{random.size(0, random.one_in(8) ? 20 : 4),
                       random.size(1, random.one_in(4) ? 70 : 20),
                       random.size(1, random.one_in(4) ? 37 : 12),
                       random.one_in(30) ? random.of({int64_t{64}, int64_t{65}, int64_t{63}}) : random.size(1, 11),
                       width,
                       random.size(0, random.one_in(4) ? 40 : 10),
                       heads,
                       random.one_in(30) ? random.size(1, 4) : random.between(1, 3)};
  const bool bad = s.batch < 0 || s.tokens < 1 || s.channels < 1 || s.slots < 1 || s.slots > 64 || s.width < 1 ||
                   s.hidden < 0 || s.heads < 1 || s.width % s.heads != 0 || s.iterations < 1;
  const Kind kind = draw_kind(random);
  SlotAttentionInput in{s,
                        bad,
                        Buffer<float>(cells({s.batch, s.tokens, s.channels})),
                        Buffer<float>(cells({s.batch, s.slots, s.width})),
                        Buffer<uint8_t>(cells({s.batch, s.slots})),
                        random.one_in(2),
                        Tensors(s),
                        kind != Kind::kSpecial || !random.one_in(3),
                        random.of({1e-8f, 1e-6f, 1e-2f})};
  draw(random, kind, in.inputs);
  draw(random, kind == Kind::kSpecial && random.one_in(2) ? Kind::kPlain : kind, in.slots);
  for (const Buffer<float>& weight : in.weights.all)
    draw(random, in.plain_weights ? Kind::kPlain : Kind::kSpecial, weight, -0.5, 0.5);
  for (uint8_t& one : in.active) one = static_cast<uint8_t>(random.below(3));
  return in;
}

void require_slot_attention(const SlotAttentionInput& in, const Buffer<float>& out,
                            const Buffer<float>& attention) {
  const SlotAttentionShape& s = in.shape;
  for (int64_t b = 0; b < s.batch; ++b) {
    if (!in.is_moderate(b)) continue;  // NaN of another image may not arrive here
    for (int64_t i = 0; i < s.slots * s.width; ++i)
      require(std::isfinite(out[b * s.slots * s.width + i]), "a slot of an image without NaN is not finite");
    for (int64_t t = 0; t < s.tokens; ++t) {
      double sum = 0.0;
      for (int64_t j = 0; j < s.slots; ++j) {
        const float share = attention[(b * s.slots + j) * s.tokens + t];
        require(share >= 0.0f, "a negative or NaN share of attention");
        require(share == 0.0f || !in.with_active || in.active[b * s.slots + j] != 0,
                "an inactive slot has a token");
        sum += static_cast<double>(share);
      }
      // The softmax goes over heads and slots: at most 192 float32 shares, with one rounding or two each.
      require(std::abs(sum - 1.0) < 3e-5, "the shares of a token do not add up to 1");
    }
  }
}

Status fuzz_slot_attention(Random& random, int threads) {
  const SlotAttentionInput in = draw_slot_attention(random);
  const SlotAttentionShape& s = in.shape;
  const int64_t saved_size = slot_attention_saved_size(s);
  require((saved_size < 0) == in.bad, "the size to save does not tell bad shapes");
  const bool save = random.one_in(2);
  const Buffer<float> out(in.bad ? 0 : in.slots.size()), out2(out.size());
  const Buffer<float> attention(in.bad ? 0 : cells({s.batch, s.slots, s.tokens})), attention2(attention.size());
  const Buffer<float> saved(save ? saved_size : 0);
  const auto run = [&](int workers, int round, const Buffer<float>& to, const Buffer<float>& shares, float* kept) {
    to.poison(round);
    shares.poison(round);
    return slot_attention(in.inputs.get(), in.slots.get(), in.weights.view<const float*>(), in.active_or_null(), s,
                          in.epsilon, workers, to.get(), shares.get(), kept);
  };
  const Result result = run(1, 0, out, attention, save ? saved.get() : nullptr);
  require_same_result(result, run(threads, 1, out2, attention2, nullptr));
  require(result.status == (in.bad ? Status::kBadShape : Status::kOk), "not the status that the input asks for");
  require(same(out, out2), "slots differ between two calls");
  require(same(attention, attention2), "attention differs between two calls");
  if (!result.ok()) return result.status;
  digest.add(out);
  digest.add(attention);
  require_slot_attention(in, out, attention);
  return result.status;
}

Status fuzz_slot_attention_backward(Random& random, int threads) {
  const SlotAttentionInput in = draw_slot_attention(random);
  const SlotAttentionShape& s = in.shape;
  const Buffer<float> saved(slot_attention_saved_size(s)), saved2(saved.size());
  const Buffer<float> out(in.bad ? 0 : in.slots.size()),
      attention(in.bad ? 0 : cells({s.batch, s.slots, s.tokens}));
  const Buffer<float> pull_slots(out.size()), pull_attention(attention.size());
  const Kind kind = random.one_in(4) ? Kind::kSpecial : Kind::kPlain;
  draw(random, kind, pull_slots);
  draw(random, kind, pull_attention);
  const bool with_attention = random.one_in(2), bi_level = random.one_in(2);
  const Buffer<float> to_inputs(in.bad ? 0 : in.inputs.size()), to_inputs2(to_inputs.size());
  const Buffer<float> to_slots(out.size()), to_slots2(out.size());
  const Tensors to(s), to2(s);
  const auto run = [&](int workers, int round, const Buffer<float>& kept, const Buffer<float>& inputs,
                       const Buffer<float>& slots, const Tensors& weights) {
    kept.poison(round);
    inputs.poison(round);
    slots.poison(round);
    for (const Buffer<float>& weight : weights.all) weight.poison(round);
    slot_attention(in.inputs.get(), in.slots.get(), in.weights.view<const float*>(), in.active_or_null(), s,
                   in.epsilon, workers, out.get(), attention.get(), kept.get());
    return slot_attention_backward(in.inputs.get(), in.weights.view<const float*>(), in.active_or_null(), s,
                                   in.epsilon, bi_level, kept.get(), pull_slots.get(),
                                   with_attention ? pull_attention.get() : nullptr, workers, inputs.get(),
                                   slots.get(), weights.view<float*>());
  };
  const Result result = run(1, 0, saved, to_inputs, to_slots, to);
  require_same_result(result, run(threads, 1, saved2, to_inputs2, to_slots2, to2));
  require(result.status == (in.bad ? Status::kBadShape : Status::kOk), "not the status that the input asks for");
  if (!result.ok()) return result.status;
  require(same(to_inputs, to_inputs2), "gradients of the inputs differ between two calls");
  require(same(to_slots, to_slots2), "gradients of the slots differ between two calls");
  digest.add(to_inputs);
  digest.add(to_slots);
  for (size_t i = 0; i < kTensors; ++i) {
    require(same(to.all[i], to2.all[i]), "gradients of the weights differ between two calls");
    digest.add(to.all[i]);
  }
  return result.status;
}

// --- command line -----------------------------------------------------------------------------------------------

struct Op {
  const char* name;
  Status (*fuzz)(Random&, int threads);
};

constexpr Op kOps[] = {
    {"matching_float", fuzz_matching<float>}, {"matching_double", fuzz_matching<double>},
    {"mask_labels", fuzz_mask_labels},        {"propagation", fuzz_propagation},
    {"slot_attention", fuzz_slot_attention},  {"slot_attention_backward", fuzz_slot_attention_backward}};

int usage() {
  std::fprintf(stderr, "usage: fuzz_core --inputs N --seed S [--first I] [--op NAME] [--threads T]\nops:");
  for (const Op& op : kOps) std::fprintf(stderr, " %s", op.name);
  std::fprintf(stderr, "\n");
  return 2;
}

int run(int argc, char** argv) {
  std::map<std::string, std::string> options{{"--first", "0"}, {"--op", ""}, {"--threads", "3"}};
  const std::set<std::string> known{"--inputs", "--seed", "--first", "--op", "--threads"};
  for (int i = 1; i < argc; i += 2) {
    if (!known.contains(argv[i]) || i + 1 == argc) return usage();
    options[argv[i]] = argv[i + 1];
  }
  if (!options.contains("--inputs") || !options.contains("--seed")) return usage();
  const int64_t inputs = std::atoll(options["--inputs"].c_str()), first = std::atoll(options["--first"].c_str());
  const uint64_t seed = std::strtoull(options["--seed"].c_str(), nullptr, 10);
  const int threads = std::atoi(options["--threads"].c_str());

  std::vector<Op> ops(std::begin(kOps), std::end(kOps));
  if (!options["--op"].empty()) std::erase_if(ops, [&](const Op& op) { return options["--op"] != op.name; });
  if (ops.empty()) return usage();
  std::map<std::string, std::map<std::string, int64_t>> counts;
  std::map<std::string, Digest> digests;
  for (int64_t i = first; i < first + inputs; ++i) {
    const Op& op = ops[static_cast<size_t>(i) % ops.size()];
    current = std::string(op.name) + " input " + std::to_string(i) + " seed " + std::to_string(seed);
    Random random(Random(seed).bits() + static_cast<uint64_t>(i) * 0xd1342543de82ef95u);
    digest = digests[op.name];
    ++counts[op.name][name(op.fuzz(random, threads))];
    digests[op.name] = digest;
  }
  std::printf("{\"seed\": %llu, \"inputs\": %lld", static_cast<unsigned long long>(seed),
              static_cast<long long>(inputs));
  for (const auto& [op, by_status] : counts) {
    std::printf(", \"%s\": {\"digest\": \"%016llx\"", op.c_str(),
                static_cast<unsigned long long>(digests[op].value));
    for (const auto& [status, count] : by_status)
      std::printf(", \"%s\": %lld", status.c_str(), static_cast<long long>(count));
    std::printf("}");
  }
  std::printf("}\n");
  return 0;
}

}  // namespace

}  // namespace glass_fast::fuzz

int main(int argc, char** argv) { return glass_fast::fuzz::run(argc, argv); }
