// The steps of one block of ratings, for one instruction set.
//
// The blocks of a round share neither users nor items, so each is a plain sequential loop without locks. A step reads
// both rows once for the product and the squared norms, and once more, now in the first-level cache, to move each along
// the other: with the scalars a and b of the step, u <- a u + b v, v <- a' v + b' u, which holds for cosine and dot
// product alike. From memory come 12 bytes per rating, for 12 dim operations by cosine and 8 dim by dot product; the
// rows of a block, some (users + items) / blocks * 4 dim bytes, stay in the cache while it runs. So it is bound by
// arithmetic, and most by waiting: the step follows from the products by a chain of a root and two divisions. Hence the
// products of the next rating are begun before it, unless they share a row, which is rare because ratings of a block
// are in random order. The instructions of a step are then what counts, so the usual lengths of a row are known when
// compiling, and loops over it are none. Rows of BFloat16 take half the cache, and more instructions: conversions, an
// addition of noise per vector, and some forty to begin the noise of both rows, which wait for nothing.
#include "simd.h"

#include "row_sums_kernel.h"

namespace metarec::METAREC_ISA {
namespace {

template <class Real>
struct Products {
  Real left_right, left_left, right_right;
};

template <bool Cosine, class Stored, class Dim, class Real = Arithmetic<Stored>>
[[gnu::always_inline]] inline Products<Real> products_of(const Stored* left, const Stored* right, Dim dim) {
  Vector<Real> between = {}, lefts = {}, rights = {};
  Products<Real> totals = {0, 0, 0};
  for_each_value<Real>(0, dim, [&]<class Value>(std::int64_t i) {
    const auto u = load_as<Value>(left + i), v = load_as<Value>(right + i);
    if constexpr (sizeof(Value) > sizeof(Real)) {
      between += u * v;
      if constexpr (Cosine) lefts += u * u, rights += v * v;
    } else {
      totals.left_right += u * v;
      if constexpr (Cosine) totals.left_left += u * u, totals.right_right += v * v;
    }
  });
  totals.left_right += sum<Real>(between);
  if constexpr (Cosine) totals.left_left += sum<Real>(lefts), totals.right_right += sum<Real>(rights);
  return totals;
}

// How a step moves a row: along itself and along its partner.
template <class Real>
struct Move {
  Real itself, partner;
};

// Stores what a step makes of a row, in 16 bits rounded by the noise of the row.
template <class Value, class Stored>
[[gnu::always_inline]] inline void store_moved(Stored* row, std::int64_t i, Value value, const RowNoise& noise) {
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    store_as<Value>(row + i, value, noise_at<Value>(noise, i));
  } else {
    store_as(row + i, value);
  }
}

// Runs the ratings of a block in their order from the scale and bias in `shared`, which it changes, and gives the sum of
// the losses.
template <bool Cosine, bool Logistic, class Stored, class Dim>
double run_block(const Factorization<Stored>& model, const SgdOptions& options, std::int64_t block,
                 std::span<const Rating<Arithmetic<Stored>>> ratings, Head<Arithmetic<Stored>>& shared, Dim dim) {
  using Real = Arithmetic<Stored>;
  Head<Real> head = shared;
  constexpr Real epsilon = kNormEpsilon;
  constexpr std::size_t ahead = 4;
  const auto bytes = static_cast<std::size_t>(dim) * sizeof(Stored);
  const auto lr = static_cast<Real>(options.lr), kept = static_cast<Real>(1 - options.lr * options.l2);
  const auto head_lr = static_cast<Real>(options.head_lr.value_or(options.lr));
  const auto left_of = [&](std::size_t k) { return model.users.data() + ratings[k].user * dim; };
  const auto right_of = [&](std::size_t k) { return model.items.data() + ratings[k].item * dim; };
  double losses = 0;
  Products<Real> next = {};
  bool known = false;  // whether `next` holds the products of the rating at hand
  for (std::size_t k = 0; k < ratings.size(); ++k) {
    if (k + ahead < ratings.size()) {
      prefetch(model.users.data(), ratings[k + ahead].user * bytes, bytes);
      prefetch(model.items.data(), ratings[k + ahead].item * bytes, bytes);
    }
    const Rating<Real> rating = ratings[k];
    Stored* left = left_of(k);
    Stored* right = right_of(k);
    Real& left_bias = model.user_biases[rating.user];
    Real& right_bias = model.item_biases[rating.item];
    const Products<Real> products = known ? next : products_of<Cosine>(left, right, dim);
    known = k + 1 < ratings.size() && ratings[k + 1].user != rating.user && ratings[k + 1].item != rating.item;
    if (known) next = products_of<Cosine>(left_of(k + 1), right_of(k + 1), dim);
    Real similarity = products.left_right, inverse_norms = 1;
    bool left_turns = true, right_turns = true;
    if constexpr (Cosine) {
      const Real left_norm = std::sqrt(products.left_left), right_norm = std::sqrt(products.right_right);
      left_turns = left_norm > epsilon, right_turns = right_norm > epsilon;
      inverse_norms = 1 / (std::max(left_norm, epsilon) * std::max(right_norm, epsilon));
      similarity *= inverse_norms;
    }
    const Real predicted = head.scale * similarity + (head.bias + (left_bias + right_bias));
    Real slope = predicted - rating.value;
    if constexpr (Logistic) {
      const Real tail = std::exp(-std::abs(predicted));
      losses += static_cast<double>(std::max(predicted, Real(0)) + std::log1p(tail) - rating.value * predicted);
      slope = (predicted >= 0 ? 1 : tail) / (1 + tail) - rating.value;
    } else {
      losses += static_cast<double>(slope * slope / 2);
    }
    const Real along = lr * slope * head.scale;
    Move<Real> left_move{kept, -along * inverse_norms}, right_move = left_move;
    if constexpr (Cosine) {
      left_move = left_turns ? Move<Real>{kept + along * similarity / products.left_left, left_move.partner}
                             : Move<Real>{kept, 0};
      right_move = right_turns ? Move<Real>{kept + along * similarity / products.right_right, right_move.partner}
                               : Move<Real>{kept, 0};
    }
    const auto place = static_cast<std::int64_t>(k);
    const RowNoise left_noise(options.seed, sgd_step_stream(block, place, kUserStream));
    const RowNoise right_noise(options.seed, sgd_step_stream(block, place, kItemStream));
    for_each_value<Real>(0, dim, [&]<class Value>(std::int64_t i) {
      const auto u = load_as<Value>(left + i), v = load_as<Value>(right + i);
      store_moved<Value>(left, i, left_move.itself * u + left_move.partner * v, left_noise);
      store_moved<Value>(right, i, right_move.itself * v + right_move.partner * u, right_noise);
    });
    left_bias = kept * left_bias - lr * slope;
    right_bias = kept * right_bias - lr * slope;
    head.scale -= head_lr * slope * similarity;
    head.bias -= head_lr * slope;
  }
  shared = head;
  return losses;
}

template <bool Cosine, bool Logistic, class Stored>
double run_block(const Factorization<Stored>& model, const SgdOptions& options, std::int64_t block,
                 std::span<const Rating<Arithmetic<Stored>>> ratings, Head<Arithmetic<Stored>>& head) {
  const auto run = [&](auto dim) {
    return run_block<Cosine, Logistic, Stored>(model, options, block, ratings, head, dim);
  };
  switch (model.dim) {
    case 16: return run(std::integral_constant<std::int64_t, 16>());
    case 32: return run(std::integral_constant<std::int64_t, 32>());
    case 64: return run(std::integral_constant<std::int64_t, 64>());
    default: return run(model.dim);
  }
}

template <class Stored>
double run_block(const Factorization<Stored>& model, const SgdOptions& options, std::int64_t block,
                 std::span<const Rating<Arithmetic<Stored>>> ratings, Head<Arithmetic<Stored>>& head) {
  const bool logistic = options.loss == RatingLoss::logistic;
  if (options.similarity == Similarity::cosine) {
    return logistic ? run_block<true, true>(model, options, block, ratings, head)
                    : run_block<true, false>(model, options, block, ratings, head);
  }
  return logistic ? run_block<false, true>(model, options, block, ratings, head)
                  : run_block<false, false>(model, options, block, ratings, head);
}

}  // namespace
}  // namespace metarec::METAREC_ISA
