// One call of a launch function, made from random bytes.
//
// Every tensor lies in memory of its own, exactly as large as its sizes and strides say, so that AddressSanitizer sees
// an access outside. A call is one of three kinds:
//   legal   runs twice, over outputs and a workspace filled with different bytes: it must succeed, both runs must give
//           the same bits (so every output is written, and nothing uninitialised is read), and the gaps between the
//           elements of a strided output must stay as they were;
//   broken  has one field spoilt: it must be refused, with a message that names the field, and write nothing;
//   huge    has sizes of any magnitude and no memory: its workspace size is asked for, and where a tensor could not
//           exist it must be refused.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "common/half.h"
#include "cosegflow/types.h"

namespace cosegflow::fuzz {

// The bytes of one input; zeros after its end.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  int64_t below(int64_t n) {  // n up to 2^16
    const int64_t value = byte() << 8 | byte();
    return value % n;
  }
  int64_t within(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool flag() { return byte() & 1; }
  bool rarely() { return byte() % 8 == 7; }
  template <class T>
  T choose(std::initializer_list<T> values) {
    return values.begin()[byte() % values.size()];
  }

 private:
  uint8_t byte() { return at_ < end_ ? *at_++ : 0; }
  const uint8_t *at_, *end_;
};

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "fuzz: %s\n", what.c_str());
  std::abort();
}

enum class Kind { kLegal, kBroken, kHuge };
enum class Values { kFeature, kMask, kFlow };
enum class Layout { kContiguous, kAny };

// The most positions of an image and the most channels: the simulated kernels are slow.
struct Limits {
  int64_t side, channels;
};

class Case {
 public:
  Case(const char* operation, Input input, Limits limits)
      : operation_(operation),
        input_(input),
        limits_(limits),
        random_(static_cast<unsigned>(input_.below(1 << 16))),
        kind_(input_.choose({Kind::kLegal, Kind::kLegal, Kind::kLegal, Kind::kBroken, Kind::kBroken, Kind::kHuge})),
        special_(input_.rarely()) {}

  Input& input() { return input_; }
  Kind kind() const { return kind_; }

  // Sizes.
  void batch(int64_t& size) {
    size = kind_ == Kind::kHuge ? magnitude() : input_.choose<int64_t>({1, 1, 2, 3, 0});
    empty_ = size == 0;
    break_size(size, "batch", false);
  }
  void size(int64_t& size, const char* name) {
    size = kind_ == Kind::kHuge ? magnitude()
                                : input_.choose<int64_t>({1, 2, 3, input_.within(1, limits_.side), limits_.side});
    break_size(size, name, true);
  }
  void channels(int64_t& size, const char* name) {
    size = kind_ == Kind::kHuge ? magnitude() : input_.choose<int64_t>({1, 3, 16, input_.within(1, limits_.channels)});
    size = kind_ == Kind::kHuge ? size : std::min(size, limits_.channels);
    break_size(size, name, true);
  }

  DType floating() { return input_.choose({DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64}); }
  DType mask_type() {
    return input_.choose({DType::kBool, DType::kFloat32, DType::kFloat16, DType::kBFloat16, DType::kFloat64});
  }

  // Something that makes any call bad, and the name that the message must hold.
  void breaker(const char* name, std::function<void()> apply) { breakers_.emplace_back(name, std::move(apply)); }

  template <int Rank>
  void input(View<Rank>& view, const char* name, DType dtype, const std::array<int64_t, Rank>& sizes, Values values,
             bool required = true) {
    Block* block = place<Rank>(view, name, dtype, sizes, Layout::kAny, true, required);
    if (block == nullptr) return;
    for (const int64_t at : block->elements) write(block->data, dtype, at, value(values, dtype));
  }

  template <int Rank>
  void output(View<Rank>& view, const char* name, DType dtype, const std::array<int64_t, Rank>& sizes,
              Layout layout = Layout::kContiguous, bool required = true) {
    Block* block = place<Rank>(view, name, dtype, sizes, layout, false, required);
    if (block != nullptr) block->output = true;
  }

  // What a forward wrote and a backward reads: contiguous, with any values.
  template <int Rank>
  void saved(View<Rank>& view, const char* name, DType dtype, const std::array<int64_t, Rank>& sizes) {
    Block* block = place<Rank>(view, name, dtype, sizes, Layout::kContiguous, false, true);
    if (block == nullptr) return;
    for (const int64_t at : block->elements) write(block->data, dtype, at, value(Values::kFlow, dtype));
  }

  // A contiguous array without a view.
  template <class Pointer>
  void array(Pointer& pointer, const char* name, DType dtype, const std::array<int64_t, 5>& sizes, bool output,
             bool required = true) {
    View<5> view;
    Block* block = place<5>(view, name, dtype, sizes, Layout::kContiguous, false, required, false);
    pointer = static_cast<Pointer>(view.data);
    if (empty_ || kind_ == Kind::kHuge) return;
    if (required) breaker(name, [&pointer] { pointer = nullptr; });
    if (element_size(dtype) > 1) {
      breaker(name, [&pointer] { pointer = reinterpret_cast<Pointer>(reinterpret_cast<uintptr_t>(pointer) + 1); });
    }
    if (output) {
      block->output = true;
    } else {
      for (const int64_t at : block->elements) write(block->data, dtype, at, value(Values::kFeature, dtype));
    }
  }

  // Positions of targets (B, H, W), or anything at all: -1 and numbers far outside must do no harm.
  void index(int64_t*& pointer, const std::array<int64_t, 5>& sizes, bool output, bool required) {
    array(pointer, "index", DType::kFloat64, sizes, output, required);
    if (output || pointer == nullptr || kind_ == Kind::kHuge || empty_) return;
    const bool any = input_.rarely();
    for (const int64_t at : blocks_.back()->elements) {
      pointer[at] = any ? static_cast<int64_t>(random_()) * random_() : static_cast<int64_t>(random_() % 8) - 1;
    }
  }

  template <class Bytes, class Run>
  void run(Bytes&& bytes, Run&& run) {
    if (kind_ == Kind::kBroken && !breakers_.empty()) return run_broken(bytes, run);
    if (kind_ == Kind::kHuge) return run_huge(bytes, run);
    run_legal(bytes, run);
  }

 private:
  struct Block {
    std::unique_ptr<char, void (*)(void*)> memory{nullptr, std::free};
    size_t bytes = 0;
    char* data = nullptr;  // of offset 0
    DType dtype = DType::kFloat32;
    bool output = false;
    std::vector<int64_t> elements;  // offsets from data
    std::string name;
  };

  [[noreturn]] void fail(const std::string& what) const { fuzz::fail(std::string(operation_) + ": " + what); }

  // A positive number of any magnitude, seldom one that is not.
  int64_t magnitude() {
    if (input_.rarely()) return input_.choose<int64_t>({0, -1, INT64_MIN, INT64_MAX, -7});
    const int64_t bits = input_.choose<int64_t>({1, 3, 8, 12, 20, input_.within(1, 62)});
    return 1 + static_cast<int64_t>((uint64_t{random_()} << 32 | random_()) % (uint64_t{1} << bits));
  }

  void break_size(int64_t& size, const char* name, bool zero) {
    const int64_t bad = zero ? input_.choose<int64_t>({0, -1, INT64_MIN, INT64_MAX, int64_t{1} << 41})
                             : input_.choose<int64_t>({-1, INT64_MIN, INT64_MAX, int64_t{1} << 41});
    breaker(name, [&size, bad] { size = bad; });
  }

  double value(Values values, DType dtype) {
    const double unit = static_cast<double>(random_()) / 4294967296.0;
    if (dtype == DType::kBool) return unit < 0.6;
    if (special_ && random_() % 8 == 0) {
      constexpr double kSpecial[] = {NAN,   INFINITY, -INFINITY, 0.0,          -0.0, 1e30,
                                     -1e30, 1e-40,    65504,     2147483648.0, 1e300};
      return kSpecial[random_() % 11];
    }
    switch (values) {
      case Values::kMask: return unit < 0.3 ? 0.0 : unit < 0.35 ? -1.0 : unit;
      case Values::kFlow: return (unit - 0.5) * 3.0 * static_cast<double>(limits_.side);
      case Values::kFeature: return 4 * unit - 2;
    }
    return 0;
  }

  static void write(char* data, DType dtype, int64_t at, double v) {
    switch (dtype) {
      case DType::kFloat16: reinterpret_cast<Half*>(data)[at] = from_float<Half>(narrowed(v)); break;
      case DType::kBFloat16: reinterpret_cast<BFloat16*>(data)[at] = from_float<BFloat16>(narrowed(v)); break;
      case DType::kFloat32: reinterpret_cast<float*>(data)[at] = narrowed(v); break;
      case DType::kFloat64: reinterpret_cast<double*>(data)[at] = v; break;
      case DType::kBool: data[at] = static_cast<char>(v != 0); break;
    }
  }
  static float narrowed(double v) { return v > 3e38 ? INFINITY : v < -3e38 ? -INFINITY : static_cast<float>(v); }

  // Strides for `sizes`, and the lowest and the highest offset of an element.
  template <int Rank>
  void lay_out(View<Rank>& view, const std::array<int64_t, Rank>& sizes, Layout layout, bool input, int64_t& lowest,
               int64_t& highest) {
    std::array<int, Rank> order{};  // from the innermost
    for (int i = 0; i < Rank; ++i) order[i] = Rank - 1 - i;
    const bool strided = layout == Layout::kAny && input_.flag();
    if (strided) std::shuffle(order.begin(), order.end(), random_);
    int64_t step = 1;
    lowest = highest = 0;
    for (const int i : order) {
      if (strided && input_.rarely()) step *= 1 + random_() % 3;  // a gap
      int64_t& stride = view.stride[i];
      stride = step;
      step *= sizes[i];
      if (strided && input && input_.rarely()) stride = 0;  // expanded
      if (strided && input && input_.rarely()) stride = -stride;
      if (strided && sizes[i] == 1) stride = input_.choose<int64_t>({0, 1, 77, 1 << 20});  // never used
      (stride < 0 ? lowest : highest) += stride * (sizes[i] - 1);
    }
  }

  template <int Rank>
  static void offsets(const View<Rank>& view, const std::array<int64_t, Rank>& sizes, std::vector<int64_t>& to) {
    int64_t count = 1;
    for (const int64_t size : sizes) count *= size;
    for (int64_t n = 0; n < count; ++n) {
      int64_t rest = n, at = 0;
      for (int i = Rank - 1; i >= 0; --i) at += rest % sizes[i] * view.stride[i], rest /= sizes[i];
      to.push_back(at);
    }
  }

  template <int Rank>
  Block* place(View<Rank>& view, const char* name, DType dtype, const std::array<int64_t, Rank>& sizes, Layout layout,
               bool input, bool required, bool breakable = true) {
    view.dtype = dtype;
    if (kind_ == Kind::kHuge) {
      alignas(64) static char nothing[64];
      view.data = nothing;
      note_huge(sizes.data(), Rank);
      uint64_t step = 1;
      for (int i = Rank - 1; i >= 0; --i) {
        view.stride[i] = static_cast<int64_t>(step);
        step *= static_cast<uint64_t>(sizes[i]);
      }
      return nullptr;
    }
    if (empty_) return nullptr;  // no elements: data stays null, as with torch
    int64_t lowest, highest;
    lay_out<Rank>(view, sizes, layout, input, lowest, highest);
    const int64_t bytes_each = element_size(dtype), shift = input_.choose<int64_t>({0, 0, 1, 3}) * bytes_each;
    auto block = std::make_unique<Block>();
    block->bytes = static_cast<size_t>((highest - lowest + 1) * bytes_each + shift);
    block->memory.reset(static_cast<char*>(std::malloc(block->bytes)));
    block->data = block->memory.get() + shift - lowest * bytes_each;
    block->dtype = dtype;
    block->name = name;
    std::memset(block->memory.get(), 0xff, block->bytes);
    offsets<Rank>(view, sizes, block->elements);
    view.data = block->data;
    blocks_.push_back(std::move(block));
    if (breakable) break_view<Rank>(view, name, layout, sizes, required);
    return blocks_.back().get();
  }

  template <int Rank>
  void break_view(View<Rank>& view, const char* name, Layout layout, const std::array<int64_t, Rank>& sizes,
                  bool required) {
    if (required) breaker(name, [&view] { view.data = nullptr; });
    breaker(name, [&view] { view.dtype = static_cast<DType>(99); });
    breaker(name, [&view] { view.dtype = static_cast<DType>(-1); });
    if (element_size(view.dtype) > 1) breaker(name, [&view] { view.data = static_cast<char*>(view.data) + 1; });
    const int dimension = static_cast<int>(random_() % Rank);
    const int64_t bad = input_.choose<int64_t>({INT64_MAX, INT64_MIN, int64_t{1} << 60});
    breaker(name, [&view, dimension, bad] { view.stride[dimension] = bad; });
    if (layout == Layout::kContiguous && sizes[dimension] > 1) {
      breaker(name, [&view, dimension] { view.stride[dimension] += 1; });
      breaker(name, [&view, dimension] { view.stride[dimension] = 0; });
    }
  }

  void note_huge(const int64_t* sizes, int rank) {
    __int128 elements = 1;
    for (int i = 0; i < rank; ++i) {
      if (sizes[i] < 1 && (i > 0 || sizes[i] < 0)) impossible_ = true;
      if (sizes[i] > 0 && elements < (__int128{1} << 62)) elements *= sizes[i];
    }
    if (elements > (__int128{1} << 43)) impossible_ = true;
  }

  void fill_outputs(int byte) {
    for (const auto& block : blocks_) {
      if (block->output) std::memset(block->memory.get(), byte, block->bytes);
    }
  }

  // An allocation of exactly `bytes`, aligned to 64, filled.
  static std::unique_ptr<char, void (*)(void*)> workspace_of(size_t bytes, int byte) {
    void* memory = nullptr;
    if (bytes > 0 && posix_memalign(&memory, 64, bytes) != 0) fuzz::fail("no memory for a workspace");
    if (bytes > 0) std::memset(memory, byte, bytes);
    return {static_cast<char*>(memory), std::free};
  }

  template <class Bytes, class Run>
  void run_legal(Bytes& bytes, Run& run) {
    std::vector<std::vector<char>> first;
    for (const int fill : {0xff, 0x5a}) {
      fill_outputs(fill);
      const size_t wanted = bytes();
      const auto workspace = workspace_of(wanted, fill);
      if (const Status s = run(workspace.get()); !s.ok()) fail(std::string("a legal call is refused: ") + s.message);
      size_t number = 0;
      for (const auto& block : blocks_) {
        if (!block->output) continue;
        check_gaps(*block, fill);
        std::vector<char> values;
        const int64_t each = element_size(block->dtype);
        for (const int64_t at : block->elements) {
          values.insert(values.end(), block->data + at * each, block->data + (at + 1) * each);
        }
        if (fill == 0xff) {
          first.push_back(std::move(values));
        } else if (values != first[number++]) {
          fail(block->name + " differs from one run to the next");
        }
      }
    }
  }

  void check_gaps(const Block& block, int fill) const {
    const int64_t each = element_size(block.dtype);
    std::vector<bool> written(block.bytes);
    for (const int64_t at : block.elements) {
      for (int64_t i = 0; i < each; ++i) written[block.data + at * each + i - block.memory.get()] = true;
    }
    for (size_t i = 0; i < written.size(); ++i) {
      if (!written[i] && static_cast<unsigned char>(block.memory.get()[i]) != fill) {
        fail(block.name + " is written beside its elements");
      }
    }
  }

  template <class Bytes, class Run>
  void run_broken(Bytes& bytes, Run& run) {
    const size_t wanted = bytes();
    if (wanted > 0) breaker("workspace", [] {});
    const auto& [name, apply] = breakers_[static_cast<size_t>(input_.below(static_cast<int64_t>(breakers_.size())))];
    apply();
    fill_outputs(0x5a);
    const size_t now = bytes();
    if (now > std::max<size_t>(wanted, 1 << 20) * 4) fail(name + " is bad, and the workspace is huge");
    const bool no_workspace = name == "workspace";
    const auto workspace = workspace_of(no_workspace ? 0 : now, 0x5a);
    const Status s = run(workspace.get());
    if (s.ok()) fail(name + " is bad, and the call succeeds");
    if (std::strstr(s.message, name.c_str()) == nullptr) fail(name + " is bad, but the message is: " + s.message);
    for (const auto& block : blocks_) {
      if (!block->output) continue;
      for (size_t i = 0; i < block->bytes; ++i) {
        if (block->memory.get()[i] != 0x5a) fail(name + " is bad, and " + block->name + " is written");
      }
    }
  }

  template <class Bytes, class Run>
  void run_huge(Bytes& bytes, Run& run) {
    static_cast<void>(bytes());
    if (impossible_ && run(nullptr).ok()) fail("tensors that cannot exist, and the call succeeds");
  }

  const char* operation_;
  Input input_;
  Limits limits_;
  std::mt19937 random_;
  Kind kind_;
  bool special_, empty_ = false, impossible_ = false;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<std::pair<std::string, std::function<void()>>> breakers_;
};

}  // namespace cosegflow::fuzz
