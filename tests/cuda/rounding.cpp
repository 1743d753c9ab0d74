// Rounding to 16 bits, of every instruction set and of the device, against what it means.
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "cuda/emulated.h"
#include "native/rounded.h"

#define METAREC_KERNEL "cuda/rounding_kernel.h"
#include "core/for_each_isa.h"

namespace {

using metarec::BFloat16;
using metarec::RowNoise;

constexpr std::int64_t kDim = 77;  // whole vectors of every set, and a rest
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Far from zero and near, subnormal, halfway between two values of 16 bits, and what is no number.
std::vector<float> values() {
  std::vector<float> values = normal<float>(kDim, 1);
  const std::uint32_t odd[] = {0x3f808000, 0x3f818000, 0xbf808000, 0x3f80ffff, 0x00000001, 0x807fffff, 0, 0x80000000,
                               0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0xff800001, 0x7fffffff};
  for (std::size_t i = 0; i < std::size(odd); ++i) values[i * 5] = std::bit_cast<float>(odd[i]);
  for (std::int64_t i = 1; i < kDim; i += 5) values[i] *= 1e-30f;
  return values;
}

void round_on_device(const float* values, std::int64_t dim, const RowNoise* noise, BFloat16* rounded) {
  for (std::int64_t i = 0; i < dim; ++i) {
    rounded[i] = noise == nullptr ? metarec::cuda::store<BFloat16>(values[i])
                                  : metarec::cuda::store<BFloat16>(values[i], (*noise)(i));
  }
}

template <class Round>
void test_rounds(const Round& round) {
  const std::vector<float> given = values();
  std::vector<BFloat16> rounded(kDim);
  for (std::uint64_t row = 0; row <= 20; ++row) {
    const RowNoise drawn(7, row), *noise = row == 0 ? nullptr : &drawn;
    round(given.data(), kDim, noise, rounded.data());
    for (std::int64_t i = 0; i < kDim; ++i) {
      const float found = metarec::value_of(rounded[i]);
      CHECK(std::isnan(given[i]) ? std::isnan(found) : found == rounded_by_hand(given[i], noise, i));
      CHECK(std::signbit(given[i]) == std::signbit(found));
    }
  }
}

// The noise of a column over many rows: each sixteenth of what it may be is as likely, whatever the column.
void test_noise_is_uniform() {
  constexpr std::int64_t rows = 20'000;
  for (const std::int64_t column : {0, 1, 2, 63}) {
    std::array<double, 16> counts{};
    for (std::int64_t row = 0; row < rows; ++row) ++counts[RowNoise(1, row)(column) >> 12];
    double chi_square = 0;
    for (const double count : counts) chi_square += std::pow(count - rows / 16.0, 2) / (rows / 16.0);
    CHECK(chi_square < 45);  // of 15 degrees of freedom: once in 10,000
  }
}

}  // namespace

int main() {
  CHECK(metarec::value_of(metarec::cuda::store<BFloat16>(kInfinity, 0xffff)) == kInfinity);
  test_rounds(metarec::baseline::round_row);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) test_rounds(metarec::avx2::round_row);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) test_rounds(metarec::avx512::round_row);
#endif
  test_rounds(round_on_device);
  test_noise_is_uniform();
}
