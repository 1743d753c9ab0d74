// Rounds a row, for one instruction set.
#include "core/simd.h"

namespace metarec::METAREC_ISA {
namespace {

template <class Value>
void round_values(const float* values, const RowNoise* noise, std::int64_t column, BFloat16* rounded) {
  const auto value = load_as<Value>(values + column);
  if (noise == nullptr) {
    store_as<Value>(rounded + column, value);
  } else {
    store_as<Value>(rounded + column, value, noise_at<Value>(*noise, column));
  }
}

// Whole vectors, and what is left value by value. To the nearest where there is no noise.
void round_row(const float* values, std::int64_t dim, const RowNoise* noise, BFloat16* rounded) {
  std::int64_t i = 0;
  for (; i + kLanes<float> <= dim; i += kLanes<float>) round_values<Vector<float>>(values, noise, i, rounded);
  for (; i < dim; ++i) round_values<float>(values, noise, i, rounded);
}

}  // namespace
}  // namespace metarec::METAREC_ISA
