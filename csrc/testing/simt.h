// Runs CUDA kernels on the host, so that they can be tested where there is no device.
//
// Every thread of a block is a fibre. A fibre runs until it waits at a barrier, a shuffle or a vote, and then another one,
// chosen at random by the seed, goes on: so a result that only a barrier makes right is wrong under most seeds where
// the barrier is missing. Blocks run one after the other, in an order that the seed shuffles as well. Shared memory is
// allocated anew and poisoned for each block, to the byte, so that AddressSanitizer sees what is read or written
// beyond it. An Error is thrown where
//   - not all threads of a block reach the same __syncthreads, or not all lanes of a mask the same shuffle or vote;
//   - a lane that is not in its own mask calls a shuffle or a vote, or reads from a lane that is not in it;
//   - a launch has no block, too many threads or too much shared memory, or METAREC_DEVICE_CHECK does not hold.
#pragma once

#include <math.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <source_location>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __noinline__
#define __grid_constant__

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

namespace simt {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Launch {
  dim3 grid, block;
  std::size_t shared_bytes = 0;  // of dynamic shared memory
  std::uint64_t seed = 0;
};

namespace detail {

constexpr std::size_t kStackBytes = 256 << 10, kPage = 4096;
constexpr std::size_t kStaticSharedLimit = 48 << 10, kSharedLimit = 227 << 10;
constexpr unsigned kThreadsLimit = 1024, kLanes = 32;
constexpr int kPoison = 0xFF;  // NaN as a float, -1 as an integer

// A stack with a page below it that must not be touched.
class Stack {
 public:
  Stack() : bytes_(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    if (bytes_ == MAP_FAILED || mprotect(bytes_, kPage, PROT_NONE) != 0) throw std::bad_alloc();
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  ~Stack() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(bytes_, kStackBytes);  // frames of threads that never came back
#endif
    munmap(bytes_, kStackBytes);
  }
  void* bottom() const { return static_cast<std::byte*>(bytes_) + kPage; }
  static constexpr std::size_t size() { return kStackBytes - kPage; }

 private:
  void* bytes_;
};

// What a thread waits for, and what it brings.
struct Request {
  const char* what = nullptr;  // null while it does not wait
  std::source_location where;
  std::uint32_t mask = 0;
  unsigned source = 0;      // lane that a shuffle reads from
  std::uint64_t value = 0;  // what it brings, and is given when all are there
};

struct Fibre {
  ucontext_t context;
  Stack* stack = nullptr;  // none: the thread that launches
  void* fake_stack = nullptr;
  uint3 thread{};
  Request request;
  bool finished = false;
};

class Block {
 public:
  Block(const Launch& launch, const std::function<void()>& kernel, std::vector<std::unique_ptr<Stack>>& stacks,
        std::mt19937_64& random)
      : kernel_(kernel), random_(random), fibres_(launch.block.x * launch.block.y * launch.block.z),
        dynamic_(allocate(launch.shared_bytes, 16)), dynamic_bytes_(launch.shared_bytes) {
    while (stacks.size() < fibres_.size()) stacks.push_back(std::make_unique<Stack>());
    for (unsigned i = 0; i < fibres_.size(); ++i) {
      Fibre& fibre = fibres_[i];
      fibre.stack = stacks[i].get();
      fibre.thread = {i % launch.block.x, i / launch.block.x % launch.block.y, i / launch.block.x / launch.block.y};
      getcontext(&fibre.context);
      fibre.context.uc_stack.ss_sp = fibre.stack->bottom();
      fibre.context.uc_stack.ss_size = Stack::size();
      fibre.context.uc_link = nullptr;
      makecontext(&fibre.context, &Block::enter, 0);
      runnable_.push_back(i);
    }
  }

  static Block& current() {
    if (current_ == nullptr) throw Error("a device function was called outside of a launch");
    return *current_;
  }

  void run() {
    current_ = this;
    go_on();
    current_ = nullptr;
    if (error_) std::rethrow_exception(error_);
    if (finished_ < fibres_.size()) throw Error(stuck());
  }

  void barrier(std::source_location where) {
    fibres_[now_].request = {"__syncthreads", where};
    const auto same = [&](const Fibre& fibre) { return waits(fibre, fibres_[now_].request); };
    if (!std::all_of(fibres_.begin(), fibres_.end(), same)) return go_on();
    for (unsigned i = 0; i < fibres_.size(); ++i) release(i);
  }

  // Waits for the lanes of the mask; then `exchange` turns what they brought into what they are given.
  template <class Exchange>
  std::uint64_t collective(Request request, const Exchange& exchange) {
    const unsigned lane = now_ % kLanes, first = now_ - lane;
    const auto live = static_cast<unsigned>(std::min<std::size_t>(kLanes, fibres_.size() - first));
    if (!(request.mask >> lane & 1)) throw Error(place(request) + " by a lane that is not in its mask");
    fibres_[now_].request = request;
    for (unsigned other = 0; other < kLanes; ++other) {
      if (!(request.mask >> other & 1)) continue;
      if (other >= live) throw Error(place(request) + " with lane " + std::to_string(other) + ", which does not exist");
      if (!waits(fibres_[first + other], request)) {
        go_on();
        return fibres_[now_].request.value;
      }
    }
    exchange(std::span(fibres_).subspan(first, live), request.mask);
    for (unsigned other = 0; other < live; ++other) {
      if (request.mask >> other & 1) release(first + other);
    }
    return fibres_[now_].request.value;
  }

  std::byte* dynamic() { return dynamic_.get(); }

  void* variable(const void* key, std::size_t bytes, std::size_t alignment) {
    for (const auto& [known, storage] : variables_) {
      if (known == key) return storage.get();
    }
    static_bytes_ += bytes;
    if (static_bytes_ > kStaticSharedLimit || static_bytes_ + dynamic_bytes_ > kSharedLimit) {
      throw Error("a block takes " + std::to_string(static_bytes_) + " bytes of static and " +
                  std::to_string(dynamic_bytes_) + " of dynamic shared memory");
    }
    variables_.emplace_back(key, allocate(bytes, alignment));
    return variables_.back().second.get();
  }

 private:
  struct Free {
    std::size_t alignment;
    void operator()(std::byte* bytes) const { ::operator delete(bytes, std::align_val_t(alignment)); }
  };
  using Storage = std::unique_ptr<std::byte, Free>;

  static Storage allocate(std::size_t bytes, std::size_t alignment) {
    auto* storage = static_cast<std::byte*>(::operator new(bytes, std::align_val_t(alignment)));
    std::memset(storage, kPoison, bytes);
    return Storage(storage, {alignment});
  }

  static bool waits(const Fibre& fibre, const Request& request) {
    const Request& other = fibre.request;
    return other.what == request.what && other.where.line() == request.where.line() &&
           other.where.column() == request.where.column() && other.mask == request.mask;
  }

  void release(unsigned fibre) {
    fibres_[fibre].request.what = nullptr;
    if (fibre != now_) runnable_.push_back(fibre);
  }

  static void enter() {
    Block* block = current_;
    block->arrive(nullptr);
    try {
      block->kernel_();
    } catch (...) {
      block->error_ = std::current_exception();
    }
    block->fibres_[block->now_].finished = true;
    ++block->finished_;
    block->go_on();
  }

  // Lets another fibre run, or the one that launched where there is none; comes back when this one has been released.
  void go_on() {
    Fibre& from = now_ == kNone ? launcher_ : fibres_[now_];
    const unsigned self = now_;
    if (runnable_.empty() || error_) {
      now_ = kNone;
      leave(from, launcher_);
    } else {
      std::swap(runnable_[random_() % runnable_.size()], runnable_.back());
      now_ = runnable_.back();
      runnable_.pop_back();
      threadIdx = fibres_[now_].thread;
      leave(from, fibres_[now_]);
    }
    now_ = self;
    if (self != kNone) threadIdx = from.thread;
  }

  void leave(Fibre& from, Fibre& to) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom = to.stack ? to.stack->bottom() : launcher_stack_;
    const std::size_t size = to.stack ? Stack::size() : launcher_stack_size_;
    __sanitizer_start_switch_fiber(from.finished ? nullptr : &from.fake_stack, bottom, size);
#endif
    swapcontext(&from.context, &to.context);
    arrive(from.fake_stack);
  }

  // Tells the sanitizer where it is now. The first fibre learns from it where the launching thread's stack lies.
  void arrive([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    const bool first = launcher_stack_ == nullptr;
    __sanitizer_finish_switch_fiber(fake_stack, first ? &launcher_stack_ : nullptr,
                                    first ? &launcher_stack_size_ : nullptr);
#endif
  }

  static std::string place(const Request& request) {
    return std::string(request.what) + " at " + request.where.file_name() + ":" + std::to_string(request.where.line());
  }

  // Where the threads are, of which none can go on.
  std::string stuck() const {
    std::vector<std::pair<std::string, std::string>> places;
    for (unsigned i = 0; i < fibres_.size(); ++i) {
      const Fibre& fibre = fibres_[i];
      const std::string where = fibre.finished ? "returned" : "waits in " + place(fibre.request);
      const auto known = std::find_if(places.begin(), places.end(), [&](auto& entry) { return entry.first == where; });
      if (known != places.end()) continue;
      places.emplace_back(where, "thread " + std::to_string(i) + " " + where);
    }
    std::string shown = "not all threads of block " + std::to_string(blockIdx.x) + ", " + std::to_string(blockIdx.y) +
                        ", " + std::to_string(blockIdx.z) + " get there: ";
    for (std::size_t i = 0; i < places.size() && i < 4; ++i) shown += (i > 0 ? "; " : "") + places[i].second;
    return shown + (places.size() == 1 ? "; the masks differ" : "");
  }

  static constexpr unsigned kNone = ~0u;
  static inline Block* current_ = nullptr;

  const std::function<void()>& kernel_;
  std::mt19937_64& random_;
  std::vector<Fibre> fibres_;
  std::vector<unsigned> runnable_;
  Fibre launcher_{};
  const void* launcher_stack_ = nullptr;
  std::size_t launcher_stack_size_ = 0;
  unsigned now_ = kNone, finished_ = 0;
  std::exception_ptr error_;
  Storage dynamic_;
  std::size_t dynamic_bytes_, static_bytes_ = 0;
  std::vector<std::pair<const void*, Storage>> variables_;
};

inline void run(const Launch& launch, const std::function<void()>& kernel) {
  const std::uint64_t threads = std::uint64_t{launch.block.x} * launch.block.y * launch.block.z;
  const std::uint64_t blocks = std::uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  if (threads == 0 || blocks == 0 || threads > kThreadsLimit || launch.grid.y > 65535 || launch.grid.z > 65535 ||
      launch.grid.x > 2147483647u || launch.block.z > 64 || launch.shared_bytes > kSharedLimit) {
    throw Error("a launch of " + std::to_string(blocks) + " blocks of " + std::to_string(threads) + " threads with " +
                std::to_string(launch.shared_bytes) + " bytes of shared memory is not possible");
  }
  std::mt19937_64 random(launch.seed);
  std::vector<std::uint64_t> order(blocks);
  std::iota(order.begin(), order.end(), std::uint64_t{0});
  std::shuffle(order.begin(), order.end(), random);
  std::vector<std::unique_ptr<Stack>> stacks;
  gridDim = launch.grid;
  blockDim = launch.block;
  for (const std::uint64_t index : order) {
    blockIdx = {static_cast<unsigned>(index % gridDim.x), static_cast<unsigned>(index / gridDim.x % gridDim.y),
                static_cast<unsigned>(index / gridDim.x / gridDim.y)};
    Block(launch, kernel, stacks, random).run();
  }
}

template <class Value>
std::uint64_t to_bits(Value value) {
  static_assert(std::is_trivially_copyable_v<Value> && sizeof(Value) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class Value>
Value from_bits(std::uint64_t bits) {
  Value value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class Value>
Value shuffle(const char* what, std::uint32_t mask, Value value, unsigned source, std::source_location where) {
  const auto exchange = [&](std::span<Fibre> lanes, std::uint32_t taking_part) {
    std::uint64_t brought[kLanes];
    for (unsigned lane = 0; lane < lanes.size(); ++lane) brought[lane] = lanes[lane].request.value;
    for (unsigned lane = 0; lane < lanes.size(); ++lane) {
      if (!(taking_part >> lane & 1)) continue;
      if (!(taking_part >> lanes[lane].request.source & 1)) {
        throw Error(std::string(what) + " at " + where.file_name() + ":" + std::to_string(where.line()) +
                    " reads from lane " + std::to_string(lanes[lane].request.source) + ", which is not in its mask");
      }
      lanes[lane].request.value = brought[lanes[lane].request.source];
    }
  };
  return from_bits<Value>(Block::current().collective({what, where, mask, source, to_bits(value)}, exchange));
}

// Gives the lanes of the mask whose predicate holds.
inline std::uint32_t vote(const char* what, std::uint32_t mask, bool predicate, std::source_location where) {
  const auto exchange = [](std::span<Fibre> lanes, std::uint32_t taking_part) {
    std::uint32_t holds = 0;
    for (unsigned lane = 0; lane < lanes.size(); ++lane) {
      if (taking_part >> lane & 1 && lanes[lane].request.value) holds |= 1u << lane;
    }
    for (unsigned lane = 0; lane < lanes.size(); ++lane) {
      if (taking_part >> lane & 1) lanes[lane].request.value = holds;
    }
  };
  return static_cast<std::uint32_t>(Block::current().collective({what, where, mask, 0, predicate}, exchange));
}

inline unsigned lane() {
  return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % kLanes;
}

}  // namespace detail

// Runs a kernel to its end.
template <class... Parameters>
void launch(const Launch& launch, void (*kernel)(Parameters...), std::type_identity_t<Parameters>... arguments) {
  detail::run(launch, [&] { kernel(arguments...); });
}

// A variable of the block; `Site` is a type of the place where it is declared.
template <class Variable, class Site>
Variable& shared_variable(Site) {
  static const char key = 0;
  return *static_cast<Variable*>(detail::Block::current().variable(&key, sizeof(Variable), alignof(Variable)));
}

template <class Value>
Value* dynamic_shared() {
  return reinterpret_cast<Value*>(detail::Block::current().dynamic());
}

// Memory for results, poisoned, and in a place of its own, to the byte.
template <class Value>
class Output {
 public:
  explicit Output(std::int64_t count) : values_(new Value[static_cast<std::size_t>(count)]), count_(count) {
    std::memset(static_cast<void*>(values_.get()), kByte, bytes());
  }

  Value* data() { return values_.get(); }

  // Gives the values; throws where one was not written.
  std::span<const Value> written() const {
    const std::vector<unsigned char> poison(sizeof(Value), kByte);
    for (std::int64_t i = 0; i < count_; ++i) {
      if (std::memcmp(values_.get() + i, poison.data(), sizeof(Value)) == 0) {
        throw Error("output " + std::to_string(i) + " of " + std::to_string(count_) + " was not written");
      }
    }
    return {values_.get(), static_cast<std::size_t>(count_)};
  }

 private:
  // No number that a kernel makes: a huge one, of which nothing comes that is right, or an integer that is not the -1 of a
  // missing row.
  static constexpr int kByte = std::is_integral_v<Value> ? 0xA5 : 0xFE;
  std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(Value); }
  std::unique_ptr<Value[]> values_;
  std::int64_t count_;
};

}  // namespace simt

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  simt::detail::Block::current().barrier(where);
}

inline void __syncwarp(unsigned mask = ~0u, std::source_location where = std::source_location::current()) {
  simt::detail::vote("__syncwarp", mask, false, where);
}

template <class Value>
Value __shfl_sync(unsigned mask, Value value, int source, int width = warpSize,
                  std::source_location where = std::source_location::current()) {
  const unsigned lane = simt::detail::lane(), first = lane & ~(static_cast<unsigned>(width) - 1);
  return simt::detail::shuffle("__shfl_sync", mask, value, first + static_cast<unsigned>(source & (width - 1)), where);
}

template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int flipped, int width = warpSize,
                      std::source_location where = std::source_location::current()) {
  const unsigned lane = simt::detail::lane(), other = lane ^ static_cast<unsigned>(flipped);
  const unsigned after = (lane | (static_cast<unsigned>(width) - 1)) + 1;
  return simt::detail::shuffle("__shfl_xor_sync", mask, value, other < after ? other : lane, where);
}

template <class Value>
Value __shfl_down_sync(unsigned mask, Value value, unsigned delta, int width = warpSize,
                       std::source_location where = std::source_location::current()) {
  const unsigned lane = simt::detail::lane(), within = lane & (static_cast<unsigned>(width) - 1);
  const bool inside = within + delta < static_cast<unsigned>(width);
  return simt::detail::shuffle("__shfl_down_sync", mask, value, inside ? lane + delta : lane, where);
}

template <class Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned delta, int width = warpSize,
                     std::source_location where = std::source_location::current()) {
  const unsigned lane = simt::detail::lane(), within = lane & (static_cast<unsigned>(width) - 1);
  return simt::detail::shuffle("__shfl_up_sync", mask, value, within >= delta ? lane - delta : lane, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              std::source_location where = std::source_location::current()) {
  return simt::detail::vote("__ballot_sync", mask, predicate != 0, where);
}

inline int __any_sync(unsigned mask, int predicate, std::source_location where = std::source_location::current()) {
  return simt::detail::vote("__any_sync", mask, predicate != 0, where) != 0;
}

inline int __all_sync(unsigned mask, int predicate, std::source_location where = std::source_location::current()) {
  return simt::detail::vote("__all_sync", mask, predicate != 0, where) == mask;
}

// The hardware promises no more than that the caller is in it.
inline unsigned __activemask() { return 1u << simt::detail::lane(); }

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class Value>
Value __ldg(const Value* address) {
  return *address;
}

// Fibres give way only where they wait, so that nothing comes between the parts of an atomic operation.
template <class Value>
Value atomicAdd(Value* address, std::type_identity_t<Value> value) {
  return std::exchange(*address, *address + value);
}

template <class Value>
Value atomicMax(Value* address, std::type_identity_t<Value> value) {
  return std::exchange(*address, std::max(*address, value));
}

template <class Value>
Value atomicMin(Value* address, std::type_identity_t<Value> value) {
  return std::exchange(*address, std::min(*address, value));
}

template <class Value>
Value atomicOr(Value* address, std::type_identity_t<Value> value) {
  return std::exchange(*address, *address | value);
}

template <class Value>
Value atomicAnd(Value* address, std::type_identity_t<Value> value) {
  return std::exchange(*address, *address & value);
}

template <class Value>
Value atomicExch(Value* address, std::type_identity_t<Value> value) {
  return std::exchange(*address, value);
}

template <class Value>
Value atomicCAS(Value* address, std::type_identity_t<Value> expected, std::type_identity_t<Value> value) {
  const Value before = *address;
  if (before == expected) *address = value;
  return before;
}

using std::max;
using std::min;
inline float rsqrtf(float value) { return 1 / std::sqrt(value); }
inline double rsqrt(double value) { return 1 / std::sqrt(value); }
inline float __fdividef(float numerator, float denominator) { return numerator / denominator; }
inline float __expf(float value) { return std::exp(value); }
inline float __logf(float value) { return std::log(value); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __popcll(unsigned long long bits) { return std::popcount(bits); }
inline int __clz(int bits) { return std::countl_zero(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1; }
