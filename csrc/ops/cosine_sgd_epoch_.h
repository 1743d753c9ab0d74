// What the kernels of the epoch read its options by.
#pragma once

#include <cstdint>

#include "metarec/cosine_sgd_epoch.h"

namespace metarec::ops {

inline SgdOptions sgd_options(double lr, double l2, bool cosine, bool logistic, std::int64_t seed, double head_lr) {
  return {lr,
          l2,
          cosine ? Similarity::cosine : Similarity::dot,
          logistic ? RatingLoss::logistic : RatingLoss::squared,
          static_cast<std::uint64_t>(seed),
          head_lr};
}

}  // namespace metarec::ops
