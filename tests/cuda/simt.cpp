// The emulator itself: what it computes, and what it refuses.
#include "testing/simt.h"

#include <numeric>
#include <set>

#include "cuda/emulated.h"

namespace {

constexpr int kThreads = 96;

__global__ void reverse(const int* given, int* reversed, bool wait) {
  METAREC_SHARED(block, int[kThreads]);
  block[threadIdx.x] = given[blockIdx.x * kThreads + threadIdx.x];
  if (wait) __syncthreads();
  reversed[blockIdx.x * kThreads + threadIdx.x] = block[kThreads - 1 - threadIdx.x];
}

bool reverses(bool wait, std::uint64_t seed) {
  std::vector<int> given(3 * kThreads);
  std::iota(given.begin(), given.end(), 1);
  simt::Output<int> reversed(3 * kThreads);
  simt::launch({3, kThreads, 0, seed}, reverse, given.data(), reversed.data(), wait);
  const auto values = reversed.written();
  for (int i = 0; i < 3 * kThreads; ++i) {
    if (values[i] != given[i / kThreads * kThreads + kThreads - 1 - i % kThreads]) return false;
  }
  return true;
}

void test_a_barrier_is_needed_where_there_must_be_one() {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    CHECK(reverses(true, seed));
    CHECK(!reverses(false, seed));
  }
}

__global__ void visit(int* order, int* next) { order[atomicAdd(next, 1)] = static_cast<int>(threadIdx.x); }

void test_the_seed_is_the_order_of_threads() {
  std::set<std::vector<int>> orders;
  for (const std::uint64_t seed : {0, 1, 2, 0}) {
    std::vector<int> order(kThreads);
    int next = 0;
    simt::launch({1, kThreads, 0, seed}, visit, order.data(), &next);
    CHECK(next == kThreads && !std::ranges::is_sorted(order));
    orders.insert(order);
    std::ranges::sort(order);
    for (int i = 0; i < kThreads; ++i) CHECK(order[i] == i);
  }
  CHECK(orders.size() == 3);
}

struct Warps {
  int down, up, flipped, from, within, odd, any, all;
};

__global__ void exchange(Warps* results) {
  const int lane = static_cast<int>(threadIdx.x) % warpSize, value = 100 + static_cast<int>(threadIdx.x);
  Warps result;
  result.down = __shfl_down_sync(~0u, value, 3);
  result.up = __shfl_up_sync(~0u, value, 2, 8);
  result.flipped = __shfl_xor_sync(~0u, value, 5);
  result.from = __shfl_sync(~0u, value, 7);
  const unsigned half = lane < 16 ? 0xFFFFu : 0xFFFF0000u;
  result.within = __shfl_sync(half, value, 3, 16);
  result.odd = static_cast<int>(__ballot_sync(~0u, lane % 2));
  result.any = __any_sync(~0u, value == 101);
  result.all = __all_sync(half, lane >= 16);
  results[threadIdx.x] = result;
}

void test_lanes_exchange_values() {
  std::vector<Warps> results(64);
  simt::launch({1, 64, 0, 3}, exchange, results.data());
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32, first = 100 + i - lane;
    const Warps& result = results[i];
    CHECK(result.down == first + (lane + 3 < 32 ? lane + 3 : lane));
    CHECK(result.up == first + (lane % 8 >= 2 ? lane - 2 : lane));
    CHECK(result.flipped == first + (lane ^ 5));
    CHECK(result.from == first + 7);
    CHECK(result.within == first + lane / 16 * 16 + 3);
    CHECK(static_cast<unsigned>(result.odd) == 0xAAAAAAAAu);
    CHECK(result.any == (i < 32) && result.all == (lane >= 16));
  }
}

__global__ void shapes(int* counts) {
  const unsigned block = blockIdx.x + gridDim.x * blockIdx.y;
  atomicAdd(counts + block, static_cast<int>(threadIdx.x + 10 * threadIdx.y));
}

void test_blocks_and_threads_of_two_dimensions() {
  std::vector<int> counts(6);
  simt::launch({{2, 3}, {4, 2}, 0, 1}, shapes, counts.data());
  for (const int count : counts) CHECK(count == 2 * (0 + 1 + 2 + 3) + 4 * 10);
}

__global__ void read_shared(float* result, int at) {
  METAREC_SHARED(values, float[8]);
  METAREC_DYNAMIC_SHARED(more, float);
  const bool fresh = values[0] != values[0] && more[0] != more[0];
  __syncthreads();
  values[threadIdx.x] = more[threadIdx.x] = 1;
  __syncthreads();
  result[blockIdx.x * 8 + threadIdx.x] = fresh ? (at < 8 ? values[at] : more[at - 8]) : 2;
}

void test_shared_memory_is_poisoned_for_each_block() {
  simt::Output<float> result(24);
  simt::launch({3, 8, 8 * sizeof(float), 1}, read_shared, result.data(), 0);
  for (const float value : result.written()) CHECK(value != 2);
}

void read_beyond(int at) {
  simt::Output<float> result(8);
  simt::launch({1, 8, 8 * sizeof(float), 1}, read_shared, result.data(), at);
}

enum class Fault { barrier_in_branch, early_return, two_barriers, divergent_shuffle, not_in_mask, foreign_lane, check };

__global__ void faulty(Fault fault) {
  const bool first = threadIdx.x == 0;
  switch (fault) {
    case Fault::barrier_in_branch:
      if (first) __syncthreads();
      break;
    case Fault::early_return:
      if (first) return;
      __syncthreads();
      break;
    case Fault::two_barriers:
      if (first) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case Fault::divergent_shuffle:
      if (!first) __shfl_down_sync(~0u, 1, 1);
      break;
    case Fault::not_in_mask:
      __shfl_down_sync(~1u, 1, 1);
      break;
    case Fault::foreign_lane:
      if (threadIdx.x < 8) __shfl_sync(0xFFu, 1, 9);
      break;
    case Fault::check:
      METAREC_DEVICE_CHECK(!first, "the first thread is not wanted");
      break;
  }
}

void test_faults_are_named() {
  const auto check_fault = [](Fault fault, const std::string& message) {
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
      check_error([&] { simt::launch({1, 32, 0, seed}, faulty, fault); }, message);
    }
  };
  check_fault(Fault::barrier_in_branch, "not all threads of block 0, 0, 0 get there: thread 0 waits in __syncthreads at");
  check_fault(Fault::early_return, "thread 0 returned; thread 1 waits in __syncthreads");
  check_fault(Fault::two_barriers, "not all threads of block 0, 0, 0 get there: thread 0 waits in __syncthreads at");
  check_fault(Fault::divergent_shuffle, "thread 0 returned; thread 1 waits in __shfl_down_sync");
  check_fault(Fault::not_in_mask, "by a lane that is not in its mask");
  check_fault(Fault::foreign_lane, "reads from lane 9, which is not in its mask");
  check_fault(Fault::check, "the first thread is not wanted");
  check_error([] { simt::launch({1, 1025}, faulty, Fault::check); }, "1 blocks of 1025 threads");
  check_error([] { simt::launch({0, 32}, faulty, Fault::check); }, "0 blocks of 32 threads");
  check_error([] { __syncthreads(); }, "outside of a launch");
}

void test_grids_that_no_device_takes_are_refused() {
  using metarec::cuda::Grid;
  const auto refused = [](const Grid& grid) {
    try {
      Emulated{0}(grid, faulty, Fault::check);
    } catch (const std::length_error& error) {
      return std::string(error.what()).find("a grid has at most 2147483647 by 65535 blocks") != std::string::npos;
    } catch (const simt::Error&) {
    }
    return false;
  };
  CHECK(refused(Grid{(std::int64_t{1} << 32) + 1, 32}));
  CHECK(refused(Grid{1, 32, (std::int64_t{1} << 32) + 1}));
  CHECK(refused(Grid{1, 32, 65536}));
  CHECK(!refused(Grid{1, 32}));
}

__global__ void write_some(float* result, int but) {
  if (static_cast<int>(threadIdx.x) != but) result[threadIdx.x] = 0;
}

void test_results_that_are_not_written_are_named() {
  simt::Output<float> result(32);
  simt::launch({1, 32}, write_some, result.data(), 17);
  check_error([&] { result.written(); }, "output 17 of 32 was not written");
}

void test_bfloat16_rounds_to_the_nearest_even() {
  using metarec::BFloat16;
  const auto rounded = [](float value) { return metarec::cuda::load(metarec::cuda::store<BFloat16>(value)); };
  CHECK(rounded(1.f) == 1.f && rounded(-3.5f) == -3.5f);
  CHECK(rounded(1 + 0x1p-8f) == 1.f && rounded(1 + 3 * 0x1p-8f) == 1 + 0x1p-6f);
  CHECK(rounded(1 + 0x1.8p-8f) == 1 + 0x1p-7f);
  CHECK(std::isnan(rounded(NAN)) && std::isinf(rounded(3.4e38f)));
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) {  // a read beyond shared memory, which AddressSanitizer is to see
    read_beyond(std::atoi(arguments[1]));
    return 0;
  }
  test_a_barrier_is_needed_where_there_must_be_one();
  test_the_seed_is_the_order_of_threads();
  test_lanes_exchange_values();
  test_blocks_and_threads_of_two_dimensions();
  test_shared_memory_is_poisoned_for_each_block();
  test_faults_are_named();
  test_grids_that_no_device_takes_are_refused();
  test_results_that_are_not_written_are_named();
  test_bfloat16_rounds_to_the_nearest_even();
}
